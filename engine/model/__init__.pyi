from .anatomy import Anatomy as Anatomy, OwnedParameter as OwnedParameter, end_tokens as end_tokens
from .coroutine import (
    AttentionCall as AttentionCall,
    CacheNeeded as CacheNeeded,
    ExpertsCall as ExpertsCall,
    Finished as Finished,
    HostCall as HostCall,
    LayerEntry as LayerEntry,
    StackEnd as StackEnd,
    SumNeeded as SumNeeded,
    current as current,
)
from .experts import (
    ExpertPart as ExpertPart,
    PlacedExperts as PlacedExperts,
    can_split as can_split,
    expert_rows as expert_rows,
    host_waits as host_waits,
    kept_experts as kept_experts,
    lean_gates as lean_gates,
    shared_apart as shared_apart,
    with_experts as with_experts,
)
from .hooks import (
    eager_attention as eager_attention,
    is_causal as is_causal,
    own_attention as own_attention,
    split as split,
)
from .in_flight import (
    Attended as Attended,
    InFlight as InFlight,
    Joint as Joint,
    JointRows as JointRows,
    bears_padding as bears_padding,
    can_join as can_join,
)
from .kvcache import (
    AsItLies as AsItLies,
    HostLayerCache as HostLayerCache,
    Kept as Kept,
    KeysValues as KeysValues,
    LayerCache as LayerCache,
    Paged as Paged,
    Store as Store,
    by_tokens as by_tokens,
    cache_for as cache_for,
    host_cache_for as host_cache_for,
    layer_of as layer_of,
    ring_pieces as ring_pieces,
    windows_of as windows_of,
)
from .packed_experts import PackedExperts as PackedExperts, UnpackedRoom as UnpackedRoom
from .packing import GROUP as GROUP, NUMBER_BITS as NUMBER_BITS, PackedFormat as PackedFormat
from .recording import recorded_routing as recorded_routing
from .share import share_of_rank as share_of_rank
