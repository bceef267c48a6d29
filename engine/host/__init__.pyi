from .attention import (
    BlockTable as BlockTable,
    HostAttention as HostAttention,
    check_block_tokens as check_block_tokens,
    unsupported as unsupported,
)
from .bits import BITS as BITS
from .experts import HostExperts as HostExperts, PlayedExperts as PlayedExperts, can_run_on_host as can_run_on_host
from .threads import HostThreads as HostThreads
