from .durations import GROWS_WITH_CONTEXT as GROWS_WITH_CONTEXT, OWN_PAGES as OWN_PAGES, CostModel as CostModel
from .memory import (
    CHOSEN_AT_ONCE as CHOSEN_AT_ONCE,
    UNIFIED as UNIFIED,
    CacheContent as CacheContent,
    MemoryPlan as MemoryPlan,
    Shortage as Shortage,
    plan_memory as plan_memory,
    reserve_bytes as reserve_bytes,
    unpacked_bytes as unpacked_bytes,
    usable_bytes as usable_bytes,
    working_bytes as working_bytes,
)
from .pools import (
    CPU_CORES as CPU_CORES,
    DRAM as DRAM,
    PAGEABLE_TRAFFIC as PAGEABLE_TRAFFIC,
    PIN_TRAFFIC as PIN_TRAFFIC,
)
from .products import ExpertUse as ExpertUse
from .setup import Setup as Setup
from .sizes import Sizes as Sizes, fetches_modules as fetches_modules
from .work import Cost as Cost, Demands as Demands, Effort as Effort
