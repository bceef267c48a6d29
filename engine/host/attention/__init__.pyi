from .decode import HostAttention as HostAttention, unsupported as unsupported
