"""The parameters of a layer that live on the host, as one piece of memory: there, and in a slot what streams."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from engine.device import aligned_bytes
from engine.model import OwnedParameter, PackedFormat
from sim.schedule import WHOLE, ExpertPlace


class HostPiece(NamedTuple):
    """A parameter in a layer's memory, or those rows of it that are the experts of one place."""

    parameter: OwnedParameter
    place: ExpertPlace | None
    """Where decode finds these experts; None: it is no parameter of routed experts."""
    experts: tuple[int, ...] | None
    """Which they are, in the order in which they lie; None: the whole parameter, as the model has it."""
    shape: torch.Size
    """Of what lies here."""
    form: PackedFormat | None = None
    """How the experts are packed, if they are, so that they lie here as [experts, bytes]."""
    start: int = 0

    @staticmethod
    def of(
        parameter: OwnedParameter,
        place: ExpertPlace | None = None,
        experts: Sequence[int] | None = None,
        form: PackedFormat | None = None,
    ) -> "HostPiece":
        """The parameter, or these experts of it."""
        whole = parameter.tensor.shape
        count, each = whole[0] if experts is None else len(experts), whole[1:] if form is None else (form.num_bytes,)
        own = None if experts is None else tuple(experts)
        return HostPiece(parameter, place, own, torch.Size((count, *each)), form)

    @property
    def num_bytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize

    @property
    def dtype(self) -> torch.dtype:
        """Of what lies here."""
        return self.parameter.tensor.dtype if self.form is None else torch.uint8

    def view(self, memory: torch.Tensor) -> torch.Tensor:
        """It in the bytes that hold the layer."""
        return memory[self.start : self.start + self.num_bytes].view(self.dtype).view(self.shape)


@dataclass(frozen=True, slots=True)
class StreamedLayer:
    """Pieces one behind the other: what streams in decode, then fetched experts, then those of the host."""

    pieces: tuple[HostPiece, ...]
    num_bytes: int
    decode_bytes: int
    """So many of the first bytes come over the link each time the layer runs in decode."""
    prefill_bytes: int
    """And so many in prefill."""
    moved_bytes: int
    """And so many ever."""
    host_start: int = 0
    """From here on lie experts that the host computes."""
    host_bytes: int = 0
    """So many."""

    @staticmethod
    def of(
        streamed: Iterable[HostPiece],
        fetched: Iterable[HostPiece] = (),
        on_host: Iterable[HostPiece] = (),
        kept: Iterable[HostPiece] = (),
        *,
        prefill_on_host: bool = False,
    ) -> "StreamedLayer":
        """Pieces in their places; `kept` ones are copies of what is on the device at the start."""
        placed: list[HostPiece] = []
        ends = [_lay(placed, pieces) for pieces in (streamed, fetched, on_host, kept)]
        prefill, moved = (ends[0], ends[1]) if prefill_on_host else (ends[2], ends[2])
        return StreamedLayer(tuple(placed), ends[3], ends[0], prefill, moved, ends[1], ends[2] - ends[1])

    @property
    def parameters(self) -> dict[int, OwnedParameter]:
        """Each of which some lives here, once, by identity."""
        return {id(piece.parameter.tensor): piece.parameter for piece in self.pieces}

    def within(self, num_bytes: int) -> Iterator[HostPiece]:
        """The pieces that lie within the first bytes."""
        return (piece for piece in self.pieces if piece.start + piece.num_bytes <= num_bytes)

    def streams_bytes(self, step: int) -> int:
        """How many of the first bytes stream in a step."""
        return self.decode_bytes if step else self.prefill_bytes

    def page(self, step: int, page: int, num_pages: int) -> tuple[int, int]:
        """The bytes [start, stop) that a page fills in a step."""
        whole = self.streams_bytes(step)
        if page == WHOLE:
            return 0, whole
        cut = [min(aligned_bytes(whole * p // num_pages), whole) for p in (page, page + 1)]
        return cut[0], cut[1]


def _lay(placed: list[HostPiece], pieces: Iterable[HostPiece]) -> int:
    """Lays pieces behind those that are placed; where the last one ends."""
    for piece in pieces:
        placed.append(piece._replace(start=aligned_bytes(_end(placed))))
    return _end(placed)


def _end(placed: list[HostPiece]) -> int:
    return placed[-1].start + placed[-1].num_bytes if placed else 0
