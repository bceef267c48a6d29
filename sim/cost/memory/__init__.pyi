from .activations import CHOSEN_AT_ONCE as CHOSEN_AT_ONCE, activation_bytes as activation_bytes
from .buffers import routed_bytes as routed_bytes
from .kv_cache import (
    kept_tokens as kept_tokens,
    kv_bytes as kv_bytes,
    kv_bytes_on_device as kv_bytes_on_device,
    tokens_on_device as tokens_on_device,
)
from .plan import (
    UNIFIED as UNIFIED,
    MemoryPlan as MemoryPlan,
    Shortage as Shortage,
    plan_memory as plan_memory,
    reserve_bytes as reserve_bytes,
    tensor_ranks as tensor_ranks,
    usable_bytes as usable_bytes,
)
