from .cost_table import task_kinds as task_kinds
from .event_loop import is_compiled as is_compiled
from .jit import jitted as jitted
from .path import CompiledPath as CompiledPath, compile_once as compile_once, warm_up as warm_up
from .program import program_of as program_of
from .steady_steps import CostVector as CostVector, SteadySteps as SteadySteps
