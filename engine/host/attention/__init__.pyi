from .block_table import BlockTable as BlockTable, check_block_tokens as check_block_tokens
from .decode import HostAttention as HostAttention, unsupported as unsupported
