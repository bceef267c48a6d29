"""What lanes share, as numbered pools: the host's two, two of each device, and the interpreter of each emulated one."""

from collections.abc import Sequence

from sim.cost.work import Demands
from sim.problem import Hardware, Processor

DRAM, CPU_CORES = 0, 1
ALL_CORES = 1000
"""Cores are counted in thousandths of all of them."""
WHOLE_INTERPRETER = 1000

PIN_TRAFFIC = 2
"""DRAM bytes per byte pinned: one read, one written."""
PAGEABLE_TRAFFIC = 3
"""DRAM bytes per byte of a pageable copy: the driver reads it, writes its relay buffer, and the DMA reads that."""

ROUNDING = 16
"""More than the demands on a pool can gain by being whole bytes per second."""


def hbm(rank: int) -> int:
    """Pool of one device's memory."""
    return 2 + 2 * rank


def link(rank: int) -> int:
    """Pool of one device's link, both directions together."""
    return hbm(rank) + 1


def interpreter(num_devices: int, rank: int) -> int:
    """Pool of the interpreter that all lanes of an emulated device are threads of; each rank has a process."""
    return hbm(num_devices) + rank


def pool_capacities(hardware: Hardware, parts: int = 1) -> Sequence[int]:
    """Per pool, what it gives in a second; of the host, what is left to one of the `parts` of a batch."""
    per_rank = (int(hardware.device_memory.bandwidth_bytes_per_s), int(hardware.link.duplex_bytes_per_s))
    of_host = (int(hardware.host_memory.bandwidth_bytes_per_s) // parts, ALL_CORES // parts)
    behind = () if hardware.emulation is None else (WHOLE_INTERPRETER,) * hardware.num_devices
    return (*of_host, *(per_rank * hardware.num_devices), *behind)


def in_one_memory(demands: Demands) -> Demands:
    """Demands where device and host are one memory, and so one pool; copies within it pass no link."""
    of_memory = sum(amount for pool, amount in demands if pool in (DRAM, hbm(0)))
    others = tuple(one for one in demands if one[0] not in (DRAM, hbm(0)))
    return ((DRAM, of_memory), *others) if of_memory else others


def never_exceeded(hardware: Hardware) -> frozenset[int]:
    """Pools that hold even if every lane asks for the most that any of its tasks can."""
    if hardware.unified:
        return frozenset((hbm(0),))  # all that moves is of the one memory, which is DRAM
    if hardware.emulation is not None:
        return frozenset(map(hbm, range(hardware.num_devices)))
    ranks, links = hardware.num_devices, hardware.link
    pinned = (links.h2d_bytes_per_s, links.d2h_bytes_per_s)
    pageable = (links.h2d_pageable_bytes_per_s, links.d2h_pageable_bytes_per_s)
    on_link = sum(map(max, pinned, pageable)) + ROUNDING
    landing = (1 + PIN_TRAFFIC) / (1 / links.d2h_bytes_per_s + 1 / hardware.staging_bytes_per_s)
    through_dram = sum(max(rate, PAGEABLE_TRAFFIC * slow) for rate, slow in zip(pinned, pageable, strict=True))
    through_dram += max(0.0, landing - max(pinned[1], PAGEABLE_TRAFFIC * pageable[1]))
    attention = hardware.host_memory.bandwidth_bytes_per_s * _highest_memory_share(hardware.host)
    kernels = hardware.device_memory.bandwidth_bytes_per_s * _highest_memory_share(hardware.device)
    most = {
        DRAM: ranks * (attention + PIN_TRAFFIC * hardware.staging_bytes_per_s + through_dram + ROUNDING),
        CPU_CORES: float(ranks * ALL_CORES),
        **{hbm(rank): kernels + on_link for rank in range(ranks)},
        **{link(rank): on_link for rank in range(ranks)},
    }
    capacities = pool_capacities(hardware)
    return frozenset(pool for pool, amount in most.items() if amount <= capacities[pool])


def _highest_memory_share(processor: Processor) -> float:
    return max(one.memory / min((at.time_ratio for at in one.at_tokens), default=1.0) for one in processor.classes)
