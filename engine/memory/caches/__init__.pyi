from .expert_cache import CacheTurn as CacheTurn, LastUsedExperts as LastUsedExperts
from .kv_blocks import KVBlocks as KVBlocks
from .paged_rows import PagedRows as PagedRows
