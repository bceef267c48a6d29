from .base import (
    LANE_OF as LANE_OF,
    Issues as Issues,
    Schedule as Schedule,
    issue as issue,
    issue_steps as issue_steps,
    layout_of as layout_of,
    next_layer as next_layer,
    steady_step as steady_step,
)
from .buffers import Buffer as Buffer, By as By, Holds as Holds, MemoryPart as MemoryPart, Tier as Tier
from .experts import (
    ASKED_FOR as ASKED_FOR,
    ON_DEVICE as ON_DEVICE,
    ExpertSlots as ExpertSlots,
    SplitExperts as SplitExperts,
)
from .prompts import KV_OVER_LINK as KV_OVER_LINK
from .registry import BUILT_IN as BUILT_IN, by_name as by_name, registered as registered
from .shape import (
    ExpertPlace as ExpertPlace,
    PipelineShape as PipelineShape,
    Place as Place,
    System as System,
)
from .slots import Access as Access, Accesses as Accesses, SlotLayout as SlotLayout
from .systems import CGOPipe as CGOPipe
from .task import (
    CPU as CPU,
    D2H as D2H,
    DEFERRED as DEFERRED,
    ENDS_LAYER as ENDS_LAYER,
    GPU as GPU,
    H2D as H2D,
    NET as NET,
    NONE as NONE,
    USES_EXPERTS as USES_EXPERTS,
    WHOLE as WHOLE,
    Lane as Lane,
    LaneKind as LaneKind,
    Op as Op,
    Task as Task,
)
from .tracking import (
    BARRIER as BARRIER,
    EXPERTS_SUM as EXPERTS_SUM,
    OUT_PROJ_SUM as OUT_PROJ_SUM,
    SUMMED as SUMMED,
    Barrier as Barrier,
    DeadlockError as DeadlockError,
    DependencyTracker as DependencyTracker,
    Issue as Issue,
    of_one_rank as of_one_rank,
    over_ranks as over_ranks,
)
