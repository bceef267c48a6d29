"""A run as one of several ranks: which schedules ranks can run, the model's share, and that all of them agree."""

import contextlib
import hashlib
import re
from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedModel

from engine.device import Rank, RankSums
from engine.model import share_of_rank
from sim.problem import Policy
from sim.schedule import Schedule
from traces.errors import InputError

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
"""Where an object lies is its process's own business."""


def check_divided(schedule: Schedule, num_devices: int) -> None:
    """Raises InputError for a schedule whose devices share something else than each tensor."""
    if num_devices == 1:
        return
    system = schedule.system
    if system.splits_batch or system.divides_layers:
        what = "requests" if system.splits_batch else "layers"
        raise InputError(
            f"schedule {schedule.name}: its {num_devices} devices divide {what} among them, which the engine does not "
            f"do: give one whose devices share each tensor, such as cgopipe"
        )


@contextlib.contextmanager
def as_rank(model: PreTrainedModel, policy: Policy, rank: Rank | None, *, keep: bool) -> Iterator[RankSums | None]:
    """While entered by all ranks, the model has a rank's share; on one device nothing changes.

    Raises InputError for what cannot be divided among so many.
    """
    if rank is None or rank.count == 1:
        yield None
        return
    if policy.layers_on_host:
        raise InputError(
            f"layers_on_host: {list(policy.layers_on_host)}: {rank.count} devices share each layer, and one that the "
            f"host runs whole has no share: leave it out"
        )
    with RankSums.opened(rank) as sums, share_of_rank(model, sums, keep=keep):
        yield sums


def check_same(sums: RankSums | None, what: str, value: Any, remedy: str = "") -> None:
    """Raises InputError, or with no remedy RuntimeError, unless all ranks have the same; all of them ask."""
    if sums is None:
        return
    told = sums.rank.gather(hashlib.sha256(_ADDRESS.sub("", repr(value)).encode()).hexdigest())
    others = [str(i) for i, one in enumerate(told) if one != told[0]]
    if others and remedy:
        raise InputError(f"{what} of rank {', '.join(others)} and of rank 0 differ: {remedy}")
    if others:
        raise RuntimeError(f"{what} of rank {', '.join(others)} and of rank 0 differ")
