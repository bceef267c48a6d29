"""What a lane asks of its thread: its helpers in torch, its cores, how promptly it wakes, and who goes first.

`torch.set_num_threads` (OpenMP builds, torch 2.13) sets the calling thread's count and, beside it, the count that a
thread gets when it first uses torch. That first use overwrites what the thread itself had set before: a lane that
begins with `set_num_threads(1)` silently computes with whatever another lane set last. `torch.get_num_threads` counts
as a first use, so it comes first here. A lane with n > 1 threads has n - 1 helpers of its own, which spin in OpenMP's
barriers and so take cores from other lanes; a lane with one thread has none.
"""

import contextlib
import ctypes
import math
import os
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

import torch

from sim.problem import core_limit
from sim.schedule import LaneKind
from traces.errors import InputError

Cores = frozenset[int]
Context = contextlib.AbstractContextManager[None]

_PR_SET_TIMERSLACK = 29  # linux/prctl.h; 0 restores the default

BEHIND: Final = 5
"""By how much lanes that compute on a core which copies share are nicer than the process: a copy that is due goes
first, and work goes on at a third of its weight. Without it a copy of half a millisecond took two beside others."""

LAUNCHING: Final = 2
"""Cores left to threads that give a real accelerator its work: one for its GPU lane, one for copies, which sleep."""

MOST_STAGING: Final = 4
"""More threads do not copy into staging faster than the link takes the bytes."""


@dataclass(frozen=True, slots=True)
class HostCores:
    """Which cores of the host the lanes use, and with how many threads: decided here and nowhere else.

    `playing`: threads that are the device where the host plays it, None where there is a real one. `apart`: the cores
    of `device_lanes`, and of all other lanes; None where the machine has too few to tell them apart. `numa_node`: the
    accelerator's, if its cores are the only ones that are used. `takes_idle`: lanes that play the device take the cores
    of others that have no use for them.
    """

    playing: int | None
    attention: int
    staging: int
    device_lanes: frozenset[LaneKind]
    apart: tuple[Cores, Cores] | None = None
    numa_node: int | None = None
    takes_idle: bool = False

    def __post_init__(self) -> None:
        check_thread_count("gpu_threads", 1 if self.playing is None else self.playing)
        check_thread_count("cpu_threads", self.attention)

    @classmethod
    def that_play(cls, gpu_threads: int | None, cpu_threads: int | None) -> Self:
        """For a device that the host plays; a count of None: half of the cores.

        Where nobody says how many play the device, it takes idle ones too.
        """
        count = usable_count()
        playing = max(1, count // 2) if gpu_threads is None else gpu_threads
        attention = max(1, count - count // 2) if cpu_threads is None else cpu_threads
        device_lanes = frozenset({LaneKind.GPU})
        apart, takes_idle = cores_apart(playing, attention, usable_cores()), gpu_threads is None
        return cls(playing, attention, _staging(count), device_lanes, apart, takes_idle=takes_idle)

    @classmethod
    def beside(cls, pci_address: str | None, cpu_threads: int | None = None, sysfs: Path = Path("/sys")) -> Self:
        """For a real accelerator; those of its NUMA node, unless more are asked for. None: all but LAUNCHING."""
        node, local = numa_of(pci_address, sysfs)
        cores = usable_cores()
        near = [core for core in cores if core in local]
        if not near or len(near) < (cpu_threads or 0) + LAUNCHING:
            node, near = None, near + [core for core in cores if core not in near]
        count = min(len(near), usable_count())
        attention = max(1, count - LAUNCHING) if cpu_threads is None else cpu_threads
        device_lanes = frozenset({LaneKind.GPU, LaneKind.H2D, LaneKind.D2H, LaneKind.NET})
        granted_all = usable_count() == len(cores)  # else everybody in the container would take the same first cores
        apart = cores_apart(LAUNCHING, attention, near) if granted_all else None
        return cls(None, attention, _staging(count), device_lanes, apart, node)

    def for_run(self, decoding: Collection[LaneKind]) -> Self:
        """The same for a run in whose decode only these lanes work: all cores for the device where it works alone."""
        if not self.takes_idle or not self.device_lanes.issuperset(decoding):
            return self
        return replace(self, playing=usable_count(), apart=None)

    def held(self) -> Self:
        """The same for every run, whatever its lanes do."""
        return replace(self, takes_idle=False)

    def torch_threads(self, kind: LaneKind) -> int:
        """Threads of torch in a lane: one, because attention has threads of its own; more where the lane is the GPU."""
        return self.playing or 1 if kind is LaneKind.GPU else 1

    def cores_of(self, kind: LaneKind) -> Cores | None:
        """The cores that a lane stays on; None: any."""
        return self.apart and self.apart[kind not in self.device_lanes]

    @property
    def facts(self) -> dict[str, int]:
        """What a trace keeps: `gpu_threads`, `cpu_threads`, `staging_threads`, `numa_node`, as far as there are."""
        names = ("gpu_threads", "cpu_threads", "staging_threads", "numa_node")
        counts = (self.playing, self.attention, self.staging, self.numa_node)
        return {name: count for name, count in zip(names, counts, strict=True) if count is not None}


def _staging(cores: int) -> int:
    """Few, because attention and the other lanes need cores too."""
    return max(1, min(MOST_STAGING, cores // 4))


def usable_cores() -> list[int]:
    """Cores that this process may use, in order."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def usable_count() -> int:
    """How many cores this process may keep busy: a container's limit counts too."""
    return max(1, min(len(usable_cores()), math.floor(min(core_limit(), 1e6))))


def numa_of(pci_address: str | None, sysfs: Path = Path("/sys")) -> tuple[int | None, Cores]:
    """The NUMA node that a PCI device is at, and its cores; None and none where the system does not tell."""
    folder = sysfs / "bus/pci/devices" / (pci_address or "none")
    try:
        node = int((folder / "numa_node").read_text(encoding="utf-8"))
        cores = _core_list((folder / "local_cpulist").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None, frozenset()
    return (node, cores) if node >= 0 else (None, frozenset())


def _core_list(text: str) -> Cores:
    """The cores that Linux writes as 0-3,8."""
    ends = [part.partition("-")[::2] for part in text.strip().split(",") if part]
    return frozenset(core for first, last in ends for core in range(int(first), int(last or first) + 1))


@contextlib.contextmanager
def for_now(put: Callable[[Any], object], inside: Any, afterwards: Any) -> Iterator[None]:
    """While entered, what `put` sets is `inside`; then it is `afterwards`."""
    put(inside)
    try:
        yield
    finally:
        put(afterwards)


def intra_op_threads(count: int, default: int) -> Context:
    """In this thread torch uses `count` threads per operation; threads made afterwards start with `default` again."""
    torch.get_num_threads()
    return for_now(torch.set_num_threads, count, default)


def cores_apart(count: int, others: int, cores: Sequence[int]) -> tuple[Cores, Cores] | None:
    """The first `count` of the cores, and the rest, at least `others`.

    None if there are too few, or no way to keep threads on them.
    """
    if not hasattr(os, "sched_setaffinity") or len(cores) < count + others:
        return None
    return frozenset(cores[:count]), frozenset(cores[count:])


def on_cores(cores: Cores | None) -> Context:
    """Keeps the calling thread, and those that it starts, on these cores; None: wherever the system lets them."""
    if cores is None:
        return contextlib.nullcontext()
    return for_now(lambda those: os.sched_setaffinity(0, those), cores, os.sched_getaffinity(0))


def prompt_sleep() -> Context:
    """In this thread sleeps end as soon as they can; Linux otherwise adds 50 µs to save power."""
    if not sys.platform.startswith("linux"):
        return contextlib.nullcontext()
    prctl = ctypes.CDLL(None).prctl
    return for_now(lambda slack_ns: prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(slack_ns), 0, 0, 0), 1, 0)


def behind_copies() -> Context:
    """Lets others go first that share a core with this thread; where that cannot be undone, for as long as it lives.

    Only Linux has a niceness for each thread. The main thread is left alone: its niceness may not come down again.
    """
    thread = threading.get_native_id()
    if not sys.platform.startswith("linux") or threading.current_thread() is threading.main_thread():
        return contextlib.nullcontext()

    def be(niceness: int) -> None:
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, thread, niceness)

    usual, before = (os.getpriority(os.PRIO_PROCESS, one) for one in (os.getpid(), thread))
    return for_now(be, usual + BEHIND, before)


def check_thread_count(name: str, count: int) -> int:
    """The count itself. Raises InputError if it is below 1."""
    if count < 1:
        raise InputError(f"{name} = {count}: at least 1 is needed")
    return count
