from .arguments import (
    add_hardware as add_hardware,
    add_policy as add_policy,
    add_problem as add_problem,
    add_routing as add_routing,
    add_settings as add_settings,
    add_weight_bits as add_weight_bits,
    fixed_policy as fixed_policy,
    hardware_asked as hardware_asked,
    problem_of as problem_of,
    schedules_of as schedules_of,
)
from .batch import (
    Batch as Batch,
    MicroBatch as MicroBatch,
    NoRoomError as NoRoomError,
    in_order as in_order,
    kv_budget as kv_budget,
    make_batch as make_batch,
    split_prompts as split_prompts,
)
from .checkpoint import Checkpoint as Checkpoint, find_checkpoint as find_checkpoint
from .machine import (
    AtTokens as AtTokens,
    Basis as Basis,
    Dimension as Dimension,
    Efficiency as Efficiency,
    Emulation as Emulation,
    Hardware as Hardware,
    Host as Host,
    Link as Link,
    Memory as Memory,
    Network as Network,
    OptimizerConstants as OptimizerConstants,
    Processor as Processor,
    Quantity as Quantity,
    Reserve as Reserve,
    core_limit as core_limit,
    kept_on_host_bytes as kept_on_host_bytes,
    memory_limit as memory_limit,
    page_lockable_bytes as page_lockable_bytes,
)
from .model import Layer as Layer, Model as Model, within_window as within_window
from .policy import (
    LOCK_UNIT_BYTES as LOCK_UNIT_BYTES,
    MOST_REQUESTS as MOST_REQUESTS,
    Placement as Placement,
    Policy as Policy,
    Split as Split,
    are_unpacked as are_unpacked,
    read_policy_file as read_policy_file,
    splits_of as splits_of,
    unpacked_at_once as unpacked_at_once,
    unpacked_experts as unpacked_experts,
    unpacks_experts as unpacks_experts,
)
from .routing import (
    UNIFORM as UNIFORM,
    Histogram as Histogram,
    LayerHistogram as LayerHistogram,
    Routing as Routing,
    TokenCounts as TokenCounts,
    Use as Use,
    drawn_uses as drawn_uses,
    expected_use as expected_use,
    lru_hit_rate as lru_hit_rate,
)
from .widths import (
    FORMS as FORMS,
    KINDS as KINDS,
    WeightBits as WeightBits,
    Widths as Widths,
    WidthsApart as WidthsApart,
    check_weight_bits as check_weight_bits,
    packed_bytes as packed_bytes,
    weight_bits_text as weight_bits_text,
)
from .workload import (
    DEFAULT_GEN_LEN as DEFAULT_GEN_LEN,
    Problem as Problem,
    Workload as Workload,
    request_length as request_length,
)
