"""The streamed parameters of a layer as one piece of memory, in host memory and in a slot alike."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from engine.device import aligned_bytes
from engine.model import OwnedParameter
from sim.schedule import WHOLE


@dataclass(frozen=True, slots=True)
class StreamedLayer:
    """The streamed parameters of one layer and their places in a piece of memory, one behind the other.

    `first_expert` of each fused parameter is the first expert that streams: those before it stay on the device.
    """

    parameters: tuple[OwnedParameter, ...]
    first_expert: int
    shapes: tuple[torch.Size, ...]
    """Of what streams of each parameter."""
    starts: tuple[int, ...]
    num_bytes: int

    @staticmethod
    def of(parameters: Iterable[OwnedParameter], first_expert: int = 0) -> "StreamedLayer":
        parameters = tuple(parameters)
        shapes, starts, stop = [], [], 0
        for parameter in parameters:
            tensor = parameter.tensor[first_expert:] if first_expert else parameter.tensor
            shapes.append(tensor.shape)
            starts.append(aligned_bytes(stop))
            stop = starts[-1] + tensor.numel() * tensor.itemsize
        return StreamedLayer(parameters, first_expert, tuple(shapes), tuple(starts), stop)

    def views(self, memory: torch.Tensor) -> list[torch.Tensor]:
        """What streams of each parameter, as views of the bytes that hold the layer."""
        return [
            memory[start : start + shape.numel() * parameter.tensor.itemsize].view(parameter.tensor.dtype).view(shape)
            for parameter, shape, start in zip(self.parameters, self.shapes, self.starts, strict=True)
        ]

    def page(self, page: int, num_pages: int) -> tuple[int, int]:
        """The bytes [start, stop) that a page fills."""
        if page == WHOLE:
            return 0, self.num_bytes
        cut = [min(aligned_bytes(self.num_bytes * p // num_pages), self.num_bytes) for p in (page, page + 1)]
        return cut[0], cut[1]
