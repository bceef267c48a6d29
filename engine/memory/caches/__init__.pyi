from .expert_cache import CacheTurn as CacheTurn, LastUsedExperts as LastUsedExperts
from .kv_blocks import KVBlocks as KVBlocks
from .kv_pools import KVPools as KVPools, blocks_of_all as blocks_of_all, kv_layers as kv_layers
from .paged_rows import PagedRows as PagedRows
