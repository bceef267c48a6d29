from .durations import GROWS_WITH_CONTEXT as GROWS_WITH_CONTEXT, OWN_PAGES as OWN_PAGES, CostModel as CostModel
from .expert_use import ExpertUse as ExpertUse
from .memory import (
    CHOSEN_AT_ONCE as CHOSEN_AT_ONCE,
    CacheContent as CacheContent,
    MemoryPlan as MemoryPlan,
    Shortage as Shortage,
    activation_bytes as activation_bytes,
    capacity_bytes as capacity_bytes,
    plan_memory as plan_memory,
)
from .pools import CPU_CORES as CPU_CORES, DRAM as DRAM
from .setup import Setup as Setup
from .sizes import Sizes as Sizes, fetches_modules as fetches_modules
from .work import Cost as Cost, Demands as Demands
