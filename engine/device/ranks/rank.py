"""One of several processes of a run, each with a device of its own, and what all of them do together."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed

from engine.device.ranks.errors import PeerLostError
from traces.errors import InputError


@dataclass(frozen=True, slots=True)
class Rank:
    """The place of this process among those of its run, which have joined one group of `torch.distributed`.

    Each method is called by all ranks, in the same order. Whoever waits for a rank that is lost gets a PeerLostError.
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise InputError(f"rank {self.index} of {self.count}: give one from 0 to {self.count - 1}")

    @property
    def is_first(self) -> bool:
        """Whether this is the one that tells and writes what came out."""
        return self.index == 0

    def all_reduce(self, tensor: torch.Tensor) -> None:
        """Puts the sum of all ranks' tensors in place of each; on a stream of a device, when that comes to it.

        For a lane: tensors of one order of issue meet in that order.
        """
        with peers_may_leave():
            distributed.all_reduce(tensor)

    def gather(self, value: Any) -> list[Any]:
        """What every rank gave, in their order, on all of them."""
        values: list[Any] = [None] * self.count
        with peers_may_leave():
            distributed.all_gather_object(values, value)
        return values

    def from_first(self, value: Any = None) -> Any:
        """What the first rank gave."""
        values = [value]
        with peers_may_leave():
            distributed.broadcast_object_list(values, src=0)
        return values[0]


@contextlib.contextmanager
def peers_may_leave() -> Iterator[None]:
    """What torch raises when another rank is gone has no class of its own."""
    try:
        yield
    except (InputError, ValueError, TypeError):  # a mistake of our own
        raise
    except RuntimeError as error:
        raise PeerLostError(f"another rank left: {str(error).splitlines()[0]}") from error
