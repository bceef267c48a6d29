from .explanation import Explanation as Explanation, explain as explain
from .grid import PolicyGrid as PolicyGrid
from .planner import (
    Choice as Choice,
    NothingFitsError as NothingFitsError,
    best_policy as best_policy,
    plan as plan,
)
