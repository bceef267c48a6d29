from .best_first import TOLERANCE as TOLERANCE, Plan as Plan, at_best as at_best
from .candidate import Candidate as Candidate, in_essence as in_essence
from .objectives import (
    ENOUGH_THROUGHPUT as ENOUGH_THROUGHPUT,
    MEANING as MEANING,
    SAME_ENERGY as SAME_ENERGY,
    SAME_LATENCY as SAME_LATENCY,
    Objective as Objective,
    ranked as ranked,
)
from .planner import (
    MOST_SIMULATIONS as MOST_SIMULATIONS,
    Choice as Choice,
    best_policy as best_policy,
    hrm_plan as hrm_plan,
    hrm_setup as hrm_setup,
    plan as plan,
)
from .refusals import AboveLimitError as AboveLimitError, NothingFitsError as NothingFitsError
