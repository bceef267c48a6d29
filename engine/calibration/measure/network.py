"""Sums over the devices of a host: how long the smallest take, and how fast large ones go."""

from dataclasses import dataclass
from functools import partial

import torch

from engine.calibration.measure.measured import Measured, lane_seconds, repeated
from engine.device import Device, Rank
from sim.schedule import LaneKind

SMALL_BYTES = 4096
LARGE_BYTES = 4 * 1024**2
"""The hidden states of a micro-batch are between the two."""


@dataclass(frozen=True, slots=True)
class NetworkProbe:
    """Bytes per second that a rank sends in a large sum, and the seconds of a small one."""

    rate: Measured
    latency: Measured


def network_probe(device: Device, rank: Rank, repeats: int) -> NetworkProbe:
    """Measures sums on the lane that has them. Called by all ranks."""
    with device.open_lane(LaneKind.NET) as lane:
        small, large = (torch.zeros(size // 4, device=device.torch_device) for size in (SMALL_BYTES, LARGE_BYTES))
        of = f"a sum over {rank.count} ranks"
        latency = repeated(
            lambda: lane_seconds(lane, partial(rank.all_reduce, small)), f"{of} of {SMALL_BYTES} bytes", repeats
        )
        sent_bytes = 2 * (rank.count - 1) / rank.count * LARGE_BYTES

        def rate() -> float:
            return sent_bytes / max(1e-9, lane_seconds(lane, partial(rank.all_reduce, large)) - latency.median)

        return NetworkProbe(repeated(rate, f"{of} of {LARGE_BYTES // 1024**2} MiB", repeats), latency)
