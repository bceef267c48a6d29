from .grid import PolicyGrid as PolicyGrid
from .planner import NothingFitsError as NothingFitsError, best_policy as best_policy
