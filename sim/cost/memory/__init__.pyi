from .activations import CHOSEN_AT_ONCE as CHOSEN_AT_ONCE
from .buffers import routed_bytes as routed_bytes
from .expanded import working_bytes as working_bytes
from .kv_cache import (
    kept_tokens as kept_tokens,
    kv_bytes as kv_bytes,
    kv_bytes_on_device as kv_bytes_on_device,
    tokens_on_device as tokens_on_device,
)
from .plan import (
    MemoryPlan as MemoryPlan,
    Shortage as Shortage,
    capacity_bytes as capacity_bytes,
    plan_memory as plan_memory,
    tensor_ranks as tensor_ranks,
)
