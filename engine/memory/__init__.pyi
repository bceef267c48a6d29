from .activations import Activations as Activations
from .buffers import Buffers as Buffers
from .caches import (
    CacheTurn as CacheTurn,
    KVBlocks as KVBlocks,
    KVPools as KVPools,
    LastUsedExperts as LastUsedExperts,
    PagedRows as PagedRows,
    blocks_of_all as blocks_of_all,
    kv_layers as kv_layers,
)
from .copying import HostCopy as HostCopy
from .host_blocks import HostBlock as HostBlock, HostBlocks as HostBlocks
from .host_weights import HostWeights as HostWeights
from .layers import HostPiece as HostPiece, StreamedLayer as StreamedLayer
from .packed import PackedLayer as PackedLayer, check_packing as check_packing, packed_layers as packed_layers
from .placement import placed as placed, streamed_layers as streamed_layers
from .weights import STAGING as STAGING, WeightStream as WeightStream
