from .activations import Activations as Activations
from .buffers import EXCHANGE as EXCHANGE, Buffers as Buffers
from .placement import placed as placed, streamed_layers as streamed_layers
from .weights import WEIGHTS as WEIGHTS, StreamedLayer as StreamedLayer, WeightStream as WeightStream
