"""The streamed parameters of a layer as one piece of memory, in host memory and in a slot alike."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from engine.device import aligned_bytes
from engine.model import OwnedParameter, PackedFormat
from sim.schedule import WHOLE


@dataclass(frozen=True, slots=True)
class StreamedLayer:
    """The streamed parameters of one layer and their places in a piece of memory, one behind the other.

    `first_expert` of each fused parameter is the first expert that streams: those before it stay on the device.
    """

    parameters: tuple[OwnedParameter, ...]
    formats: tuple[PackedFormat | None, ...]
    """Of each parameter, how it is packed, if it is."""
    first_expert: int
    shapes: tuple[torch.Size, ...]
    """Of what streams of each parameter; packed ones stream as [experts, bytes]."""
    starts: tuple[int, ...]
    num_bytes: int

    @staticmethod
    def of(
        parameters: Iterable[OwnedParameter], first_expert: int = 0, formats: Sequence[PackedFormat | None] = ()
    ) -> "StreamedLayer":
        """The parameters in this order; `formats` are those of the first ones, which are experts."""
        parameters = tuple(parameters)
        formats = (*formats, *[None] * (len(parameters) - len(formats)))
        shapes, starts, stop = [], [], 0
        for parameter, form in zip(parameters, formats, strict=True):
            tensor = parameter.tensor[first_expert:] if first_expert else parameter.tensor
            shapes.append(tensor.shape if form is None else torch.Size((len(tensor), form.num_bytes)))
            starts.append(aligned_bytes(stop))
            stop = starts[-1] + shapes[-1].numel() * _dtype(parameter, form).itemsize
        return StreamedLayer(parameters, formats, first_expert, tuple(shapes), tuple(starts), stop)

    @property
    def is_packed(self) -> bool:
        """Whether its experts are."""
        return any(form is not None for form in self.formats)

    def views(self, memory: torch.Tensor) -> list[torch.Tensor]:
        """What streams of each parameter, as views of the bytes that hold the layer."""
        views = []
        for parameter, form, shape, start in zip(self.parameters, self.formats, self.shapes, self.starts, strict=True):
            dtype = _dtype(parameter, form)
            views.append(memory[start : start + shape.numel() * dtype.itemsize].view(dtype).view(shape))
        return views

    def page(self, page: int, num_pages: int) -> tuple[int, int]:
        """The bytes [start, stop) that a page fills."""
        if page == WHOLE:
            return 0, self.num_bytes
        cut = [min(aligned_bytes(self.num_bytes * p // num_pages), self.num_bytes) for p in (page, page + 1)]
        return cut[0], cut[1]


def _dtype(parameter: OwnedParameter, form: PackedFormat | None) -> torch.dtype:
    return parameter.tensor.dtype if form is None else torch.uint8
