"""Work for ranks whose outcome is known beforehand, and ways in which one of them goes wrong."""

import os
import signal
import sys
import time

import torch

from engine.device import Rank, join_group, keep_to_share
from traces.errors import InputError


def sums(place, tell, count):
    """Some sums over ranks in order of issue, and what all know of each other afterwards."""
    with join_group(place) as rank:
        found = []
        for i in range(count):
            tensor = torch.full((3,), float(i + 1)) * (rank.index + 1)
            rank.all_reduce(tensor)
            found.append(tensor[0].item())
            tell(i)
        keep_to_share(rank)
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        return rank.gather((found, cores, rank.from_first(f"of {rank.index}")))


def goes_wrong(place, tell, which, how, lateness_s=0.0):
    """Rank `which` goes wrong at its third sum while the others wait for it."""
    with join_group(place) as rank:
        for i in range(1000):
            if i == 2 and rank.index == which:
                time.sleep(lateness_s)
                WAYS[how](rank)
            rank.all_reduce(torch.ones(3))
            tell(i)


def refused(place, tell):
    """All ranks refuse the same."""
    raise InputError("model: three ranks for 32 heads: give 2 or 4")


def _be_killed(rank: Rank):
    os.kill(os.getpid(), signal.SIGKILL)


def _raise(rank: Rank):
    raise ZeroDivisionError("by nothing")


def _refuse(rank: Rank):
    raise InputError("device memory is full")


def _leave(rank: Rank):
    os.execv(sys.executable, [sys.executable, "-c", "raise SystemExit(7)"])


WAYS = {"killed": _be_killed, "raises": _raise, "refuses": _refuse, "leaves": _leave}
