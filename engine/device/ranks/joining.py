"""How the processes of a run become one group: by a file that all of them see, or as `torchrun` says."""

import atexit
import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed

from engine.device.ranks.rank import Rank
from traces.errors import InputError

PATIENCE = timedelta(hours=6)
"""How long ranks wait for each other: one may load a model or plan for long. Who dies is noticed at once."""

LOOPBACK = {"linux": "lo", "darwin": "lo0"}
"""By platform the interface over which processes of one host talk: the host's name may lead nowhere."""

BACKENDS = {"cuda": "nccl", "xpu": "xccl"}
"""What sums tensors of a kind of device."""

GIVEN_BY_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """Where a rank meets the others: in a folder, or at the address in the environment that `torchrun` gives."""

    index: int
    count: int
    folder: Path | None


def started_by_torchrun(environment: Mapping[str, str] = os.environ) -> Rendezvous | None:
    """The place of this process if `torchrun`, or what speaks like it, started it as one of several; else None.

    Raises InputError for ranks on several hosts.
    """
    if not all(environment.get(name) for name in GIVEN_BY_TORCHRUN):
        return None
    index, count, _, local_count = (int(environment[name]) for name in GIVEN_BY_TORCHRUN[:4])
    if count == 1:
        return None
    if local_count != count:
        raise InputError(
            f"torchrun: {count} ranks with {local_count} on this host: ranks share one host's memory; give --nnodes 1, "
            f"or a file of requests to each host (docs/many_hosts.md)"
        )
    return Rendezvous(index, count, None)


@contextlib.contextmanager
def join_group(place: Rendezvous, device_type: str = "cpu") -> Iterator[Rank]:
    """While entered, this process is one of the ranks; entered when all are there.

    `device_type` is what tensors are on that are summed: those of CUDA go by NCCL, all else by Gloo. A group of
    `torchrun` stays until the process ends.
    """
    if device_type == "cuda":
        torch.cuda.set_device(place.index)
    if place.folder is None:
        if not distributed.is_initialized():
            _form(place, device_type, "env://")
            atexit.register(distributed.destroy_process_group)
        yield Rank(place.index, place.count)
        return
    _form(place, device_type, f"file://{place.folder / 'rendezvous'}")
    try:
        yield Rank(place.index, place.count)
    finally:
        distributed.destroy_process_group()


def _form(place: Rendezvous, device_type: str, where: str) -> None:
    if sys.platform in LOOPBACK:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK[sys.platform])
    backend = "gloo" if device_type == "cpu" else f"cpu:gloo,{device_type}:{BACKENDS.get(device_type, 'gloo')}"
    distributed.init_process_group(backend, where, PATIENCE, place.count, place.index)
