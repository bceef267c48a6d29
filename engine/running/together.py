"""Calls that all devices of a run make: those that `torchrun` started hear of them from the first."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from engine.device import DeviceAsked, Rank, RankError, is_peer_lost, started_by_torchrun
from engine.generation import joined_ranks
from traces.errors import InputError

HEARD_HERE = ("progress", "on_batch")
"""What a call is given that is told of the first rank alone."""

LEFT = "another rank left: its own line, or the report of torchrun, says why; what has ended is written, for --resume"


@dataclass(frozen=True, slots=True)
class Together:
    """The devices of a run, `count` of them; `rank` is this process's where `torchrun` started it, the first."""

    count: int = 1
    rank: Rank | None = None

    def __call__(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """What `call(…, num_devices=count)` gives; the other ranks of `torchrun` make it too."""
        if self.rank is not None:
            sent = {name: value for name, value in options.items() if name not in HEARD_HERE}
            self.rank.from_first((call, arguments, sent))
        return call(*arguments, num_devices=self.count, **options)


@contextlib.contextmanager
def together(count: int | None, device: DeviceAsked) -> Iterator[Together | None]:
    """The devices that are asked for; None in a process that has followed the first and has nothing left to do.

    `count` of None: as many as `torchrun` started, else one. Raises InputError where the two disagree, and RankError
    where another rank is lost.
    """
    place = started_by_torchrun()
    if place is None:
        device.check_there_are(count or 1)
        yield Together(count or 1)
        return
    if count not in (None, place.count):
        raise InputError(f"--devices {count}: torchrun has started {place.count} ranks: leave it out")
    with _named(place.index), joined_ranks(place, device) as rank:
        if not rank.is_first:
            _follow(rank)
            yield None
            return
        try:
            yield Together(rank.count, rank)
        except BaseException as error:
            if not is_peer_lost(error):
                rank.from_first(None)
            raise
        rank.from_first(None)


def _follow(rank: Rank) -> None:
    """Makes the calls that the first rank makes, until that has no more."""
    while (said := rank.from_first()) is not None:
        call, arguments, options = said
        call(*arguments, num_devices=rank.count, **options)


@contextlib.contextmanager
def _named(index: int) -> Iterator[None]:
    """What goes wrong in a rank is told in a line with its name; of ranks that were left, by the first."""
    try:
        yield
    except InputError as error:
        raise error if index == 0 else RankError(f"rank {index}: {error}") from error
    except RuntimeError as error:
        if not is_peer_lost(error):
            raise
        if index:
            sys.exit(1)
        raise RankError(LEFT) from error
