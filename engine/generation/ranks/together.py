"""Calls that all devices of a run make: those that `torchrun` started hear of them from the first."""

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine import device as devices
from engine.device import device_asked
from traces.cli import positive_int
from traces.errors import InputError

if TYPE_CHECKING:
    from engine.device import Rank

HEARD_HERE = ("progress", "on_batch")
"""What a call is given that is told of the first rank alone."""

LEFT = "another rank left: its own line, or the report of torchrun, says why; what has ended is written, for --resume"


@dataclass(frozen=True, slots=True)
class DevicesTogether:
    """The devices of a run, `count` of them; `rank` is this process's where `torchrun` started it, the first."""

    count: int = 1
    rank: "Rank | None" = None

    def __call__(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """What `call(…, num_devices=count)` gives; the other ranks of `torchrun` make it too."""
        if self.rank is not None:
            sent = {name: value for name, value in options.items() if name not in HEARD_HERE}
            self.rank.from_first((call, arguments, sent))
        return call(*arguments, num_devices=self.count, **options)


def add_devices(parser: Any) -> None:
    """Add the option that says how many they are to a parser or a group of it."""
    several = "devices of this host that work together, a process each (default: 1, or as many as torchrun starts)"
    parser.add_argument("--devices", type=positive_int, metavar="N", help=several)


@contextlib.contextmanager
def devices_together(args: argparse.Namespace) -> Iterator[DevicesTogether | None]:
    """The devices that are asked for; None in a process that has followed the first and has nothing left to do.

    Raises InputError for more than there are, or others than `torchrun` started, and RankError where a rank is lost.
    """
    count, device = args.devices, device_asked(args)
    place = devices.started_by_torchrun()
    if place is None:
        device.check_there_are(count or 1)
        yield DevicesTogether(count or 1)
        return
    if count not in (None, place.count):
        raise InputError(f"--devices {count}: torchrun has started {place.count} ranks: leave it out")
    device.check_there_are(place.count)
    from engine.generation.ranks.calling import joined_ranks

    with _named(place.index), joined_ranks(place, device) as rank:
        if not rank.is_first:
            _follow(rank)
            yield None
            return
        yield DevicesTogether(rank.count, rank)
        rank.from_first(None)  # not where it fails: the others may be in the middle of a call, and hear that it is gone


def _follow(rank: "Rank") -> None:
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
        raise error if index == 0 else devices.RankError(f"rank {index}: {error}") from error
    except RuntimeError as error:
        if not devices.is_peer_lost(error):
            raise
        if index:
            sys.exit(1)
        raise devices.RankError(LEFT) from error
