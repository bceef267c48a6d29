from .host import BITS as BITS, HostAttention as HostAttention, unsupported as unsupported
