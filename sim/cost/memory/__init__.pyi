from .activations import CHOSEN_AT_ONCE as CHOSEN_AT_ONCE
from .buffers import routed_bytes as routed_bytes
from .expanded import working_bytes as working_bytes
from .kv_cache import (
    CacheContent as CacheContent,
    kv_bytes as kv_bytes,
    kv_bytes_on_device as kv_bytes_on_device,
)
from .pageable import pageable_copies as pageable_copies
from .plan import (
    UNIFIED as UNIFIED,
    MemoryPlan as MemoryPlan,
    Shortage as Shortage,
    plan_memory as plan_memory,
    reserve_bytes as reserve_bytes,
    tensor_ranks as tensor_ranks,
    unpacked_bytes as unpacked_bytes,
    usable_bytes as usable_bytes,
)
