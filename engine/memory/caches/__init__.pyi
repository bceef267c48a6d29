from .expert_cache import CacheTurn as CacheTurn, LastUsedExperts as LastUsedExperts
from .kv_blocks import BLOCK_TOKENS as BLOCK_TOKENS, KVBlocks as KVBlocks
