from .activations import Activations as Activations
from .buffers import Buffers as Buffers
from .placement import placed as placed, streamed_layers as streamed_layers
from .weights import StreamedLayer as StreamedLayer, WeightStream as WeightStream
