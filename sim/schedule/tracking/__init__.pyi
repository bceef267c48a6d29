from .dependencies import (
    BARRIER as BARRIER,
    Barrier as Barrier,
    DeadlockError as DeadlockError,
    DependencyTracker as DependencyTracker,
    Issue as Issue,
)
from .ranks import (
    EXPERTS_SUM as EXPERTS_SUM,
    OUT_PROJ_SUM as OUT_PROJ_SUM,
    SUMMED as SUMMED,
    of_one_rank as of_one_rank,
    over_ranks as over_ranks,
)
