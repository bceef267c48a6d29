from .bands import (
    DRAWS as DRAWS,
    LEVEL as LEVEL,
    SPREADS as SPREADS,
    WITHIN as WITHIN,
    Band as Band,
    Range as Range,
    Share as Share,
    Spreads as Spreads,
    Unknown as Unknown,
    band_of as band_of,
    bands_of as bands_of,
    in_sentences as in_sentences,
    stays_best as stays_best,
    unknowns_of as unknowns_of,
    varied as varied,
)
from .compiled import (
    compile_once as compile_once,
    is_compiled as is_compiled,
    jitted as jitted,
    warm_up as warm_up,
)
from .energy import (
    Component as Component,
    Drawn as Drawn,
    Draws as Draws,
    Energy as Energy,
    power_counters as power_counters,
)
from .fair_sharing import fair_rates as fair_rates
from .prediction import (
    MEASURES as MEASURES,
    LaneSummary as LaneSummary,
    Prediction as Prediction,
    predict as predict,
)
from .recurrence import in_turn as in_turn, start_delays as start_delays, task_ends as task_ends
from .sampling import StepShare as StepShare
from .simulator import Executed as Executed, Simulation as Simulation, simulate_steps as simulate_steps
from .stream import (
    NOT_YET as NOT_YET,
    RECORD as RECORD,
    RECORDED_STREAM_STEPS as RECORDED_STREAM_STEPS,
    REQUESTS as REQUESTS,
    STREAM_MEASURES as STREAM_MEASURES,
    Behind as Behind,
    Quantiles as Quantiles,
    RequestTimes as RequestTimes,
    ServedCosts as ServedCosts,
    ServedRequest as ServedRequest,
    ServedStep as ServedStep,
    StepTimes as StepTimes,
    StreamRecord as StreamRecord,
    StreamResult as StreamResult,
    StreamRoomError as StreamRoomError,
    StreamRun as StreamRun,
    StreamSetup as StreamSetup,
    WorkCosts as WorkCosts,
    record_stream as record_stream,
    serve_in_batches as serve_in_batches,
    serve_stream as serve_stream,
    simulate_stretches as simulate_stretches,
    stream_tasks as stream_tasks,
    stretches as stretches,
)
from .views import (
    LayerView as LayerView,
    describe_shape as describe_shape,
    layer_view as layer_view,
    record as record,
    span_of as span_of,
    structure as structure,
)
