from .host_layers import HostLayers as HostLayers
from .host_room import ExpertRoom as ExpertRoom, HostRoom as HostRoom, expert_exchange_bytes as expert_exchange_bytes
from .host_time import HostTime as HostTime, clocks_ns as clocks_ns
