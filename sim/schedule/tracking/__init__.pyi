from .dependencies import (
    BARRIER as BARRIER,
    Barrier as Barrier,
    DeadlockError as DeadlockError,
    DependencyTracker as DependencyTracker,
    Issue as Issue,
)
from .ranks import EXPERTS_SUM as EXPERTS_SUM, SUMMED as SUMMED, over_ranks as over_ranks
