from .compiled import (
    FastResult as FastResult,
    compile_once as compile_once,
    generation_s as generation_s,
    jitted as jitted,
)
from .fair_sharing import fair_rates as fair_rates
from .gaps import start_delays as start_delays
from .prediction import LaneSummary as LaneSummary, Prediction as Prediction, evaluate as evaluate, to_dict as to_dict
from .recurrence import task_ends as task_ends
from .simulator import Executed as Executed, Simulation as Simulation
from .timeline import record as record, span_of as span_of, structure as structure
