from .caches import (
    cache_for as cache_for,
    host_cache_for as host_cache_for,
    joint_cache as joint_cache,
    kinds_of_cache as kinds_of_cache,
    layer_of as layer_of,
    note_tokens as note_tokens,
    windows_of as windows_of,
)
from .kept import (
    Allocate as Allocate,
    AsItLies as AsItLies,
    Kept as Kept,
    KeysValues as KeysValues,
    Paged as Paged,
    Pair as Pair,
)
from .layer_cache import HostLayerCache as HostLayerCache, LayerCache as LayerCache
from .ring import ring_pieces as ring_pieces
from .store import Store as Store, by_tokens as by_tokens
