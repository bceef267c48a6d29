from .attention import HostAttention as HostAttention, unsupported as unsupported
from .bits import BITS as BITS
from .threads import HostThreads as HostThreads
