"""The cores of a host shared out to its ranks: each works on its own, so that no two of them meet on one."""

import os
from collections.abc import Collection, Sequence

import torch

from engine.device.ranks.rank import Rank
from engine.device.threads import usable_cores, usable_count


def keep_to_share(rank: Rank, near: Collection[int] = ()) -> None:
    """Keeps this process, and the threads that it starts from now on, on its share of the cores.

    `near`: those beside the rank's device, where the system knows (a NUMA node); they go to the ranks that are there.
    Called by all ranks.
    """
    granted = usable_cores()[: usable_count()] if usable_count() < len(usable_cores()) else usable_cores()
    wanted = [core for core in granted if core in near] or granted
    share = share_of(rank.index, rank.gather(tuple(wanted)))
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, share)
    torch.set_num_threads(len(share))


def share_of(index: int, wanted: Sequence[Sequence[int]]) -> list[int]:
    """One rank's part of the cores that it wants, which those who want the same share evenly; `wanted` is by rank.

    Where there are fewer cores than ranks, they take turns.
    """
    own = wanted[index]
    sharers = [rank for rank, cores in enumerate(wanted) if tuple(cores) == tuple(own)]
    place, count = sharers.index(index), len(sharers)
    if len(own) < count:
        return [own[place % len(own)]]
    return list(own[place * len(own) // count : (place + 1) * len(own) // count])
