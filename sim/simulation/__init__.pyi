from .compiled import (
    compile_once as compile_once,
    is_compiled as is_compiled,
    jitted as jitted,
    warm_up as warm_up,
)
from .fair_sharing import fair_rates as fair_rates
from .prediction import (
    MEASURES as MEASURES,
    LaneSummary as LaneSummary,
    Prediction as Prediction,
    predict as predict,
)
from .recurrence import in_turn as in_turn, start_delays as start_delays, task_ends as task_ends
from .simulator import Executed as Executed, Simulation as Simulation, simulate_steps as simulate_steps
from .stream import (
    STREAM_MEASURES as STREAM_MEASURES,
    Behind as Behind,
    Quantiles as Quantiles,
    RequestTimes as RequestTimes,
    StepTimes as StepTimes,
    StreamResult as StreamResult,
    StreamSetup as StreamSetup,
    WorkCosts as WorkCosts,
    serve_in_batches as serve_in_batches,
    serve_stream as serve_stream,
)
from .timeline import record as record, span_of as span_of, structure as structure
