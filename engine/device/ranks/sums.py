"""What ranks add up while a run goes on, wherever it is computed."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed

from engine.device.ranks.rank import Rank, peers_may_leave
from traces.errors import InputError

ON_HOST = "gloo"


@dataclass(frozen=True, slots=True)
class RankSums:
    """Sums over all ranks, of lanes that work at the same time.

    Each of those has a connection of its own, and so an order of its own: that of the schedule, which is the same on
    all ranks. So no rank waits for what another one asks for only later.
    """

    rank: Rank
    between_devices: Any
    of_words: Any
    on_host: Any

    @classmethod
    @contextlib.contextmanager
    def opened(cls, rank: Rank) -> Iterator["RankSums"]:
        """While entered by all ranks. Raises InputError where they have not joined a group."""
        if not distributed.is_initialized():
            raise InputError(
                f"rank {rank.index} of {rank.count}: this process has joined no other: enter engine.device.join_group "
                f"first, or run with --devices or torchrun"
            )
        with peers_may_leave():
            groups = [distributed.new_group(), distributed.new_group(), distributed.new_group(backend=ON_HOST)]
        try:
            yield cls(rank, *groups)
        finally:
            for group in groups:
                distributed.destroy_process_group(group)

    def add_up(self, tensor: torch.Tensor) -> None:
        """Puts the sum in place of what each rank has: of the lane between devices."""
        self._add_up(tensor, self.between_devices)

    def add_up_words(self, tensor: torch.Tensor) -> None:
        """The same of the device's own lane, which begins with words."""
        self._add_up(tensor, self.of_words)

    def add_up_on_host(self, tensor: torch.Tensor) -> None:
        """The same of the lane that computes on the host."""
        self._add_up(tensor, self.on_host)

    def gather_words(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """What each rank has, in their order; all have as much. Of the device's own lane, which ends with words."""
        found = [torch.empty_like(tensor) for _ in range(self.rank.count)]
        with peers_may_leave():
            distributed.all_gather(found, tensor, group=self.of_words)
        return found

    def _add_up(self, tensor: torch.Tensor, group: Any) -> None:
        with peers_may_leave():
            distributed.all_reduce(tensor, group=group)
