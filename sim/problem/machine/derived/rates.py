"""Numbers of a machine that no file gives: a small model of copies, cores and what others keep, stated in the sources.

Each follows from other numbers of the same machine, so that it follows them where a file extends another and changes
them. What a file gives, measured or assumed, is never touched.

A core moves `CORE_BYTES_PER_S` between itself and DRAM, so that it copies half as fast. A copy of pageable memory is a
core's copy into a page-locked buffer, and then one over the link. A link reaches a share of its theory that depends on
its generation. What a processor reaches of DRAM is a usual share, or what its cores move, if that is less.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise

from sim.problem.machine.chips import links_of_a_corner
from sim.problem.machine.derived.given import Given, Rule
from sim.problem.machine.quantity import Dimension
from traces.errors import error_prefix

CORE_BYTES_PER_S = 24e9
SUSTAINED_OF_DRAM = 0.72
"""STREAM reaches 148 of 204.8 GB/s on an EPYC 7742 (gist v0dro)."""
BOTH_WAYS = 0.903
"""What a direction keeps of its rate while the other is busy: 11.16 of 12.36 GB/s (NVIDIA/nvbandwidth README)."""

SUSTAINED_OF_LINK = (
    (20e9, 12.36 / 15.75),
    (40e9, 0.8),
    (1e18, 55.63 / 63),
)
"""Up to which peak, the share of it that copies reach: PCIe 3.0, 4.0, and what is faster, of sixteen lanes."""


GIB = 1024.0**3
DEVICE_RESERVE = 1 * GIB
HOST_RESERVE = ((0, 0.25), (4, 0.2), (8, 0.1), (16, 0.06), (128, 0.02))
"""From how many GiB on, the share that is kept: what Google Kubernetes Engine keeps of a node's memory."""


def _network(given: Given) -> float | None:
    """What a device in a mesh gives to an all-reduce."""
    link, network = given.rate("network.one_way"), given.table.get("network")
    if link is None or not isinstance(network, Mapping) or not isinstance(network.get("mesh"), str):
        return None
    with error_prefix("network."):
        return link * links_of_a_corner(network["mesh"], wraps=network.get("wraps") is True)


def page_lockable_bytes(host_bytes: float) -> float:
    """Of a host's memory, what may be page-locked where nobody says."""
    return host_bytes / 2


def _pinned(given: Given) -> float | None:
    """Half of the host; where copies reach page-locked memory alone, all that is not kept by others."""
    capacity = given.size("host_memory.capacity")
    if capacity is None or not given.is_locked_only:
        return None if capacity is None else page_lockable_bytes(capacity)
    kept = given.number("reserve.host", Dimension.KEPT)
    return capacity - (kept_on_host_bytes(capacity) if kept is None else kept)


def kept_on_host_bytes(host_bytes: float) -> float:
    """Of a host's memory, what the operating system, other programs and Python keep."""
    steps = [*((first * GIB, share) for first, share in HOST_RESERVE), (float("inf"), 0.0)]
    return sum(share * max(0.0, min(host_bytes, last) - first) for (first, share), (last, _) in pairwise(steps))


def _host_reserve(given: Given) -> float | None:
    capacity = given.size("host_memory.capacity")
    return None if capacity is None else kept_on_host_bytes(capacity)


def _device_reserve(given: Given) -> float | None:
    """One memory of device and host keeps what the host's does: its driver is part of it."""
    capacity = given.size("device_memory.capacity")
    return None if capacity is None else 0.0 if given.is_unified else min(DEVICE_RESERVE, capacity / 8)


def _copy(given: Given) -> float | None:
    """A core's copy in host memory."""
    bandwidth = given.rate("host_memory.bandwidth")
    return None if bandwidth is None else min(CORE_BYTES_PER_S, SUSTAINED_OF_DRAM * bandwidth) / 2


def _link_peak(given: Given) -> float | None:
    bandwidth = given.rate("host_memory.bandwidth") if given.is_unified else None
    return None if bandwidth is None else bandwidth / 2


def _one_way(given: Given) -> float | None:
    peak = given.rate("link.peak")
    if peak is None:
        return None
    of_link = next((share for most, share in SUSTAINED_OF_LINK if peak <= most), 1.0)
    bandwidth = given.rate("host_memory.bandwidth") or peak / SUSTAINED_OF_DRAM
    return peak * SUSTAINED_OF_DRAM if given.is_unified else min(peak * of_link, SUSTAINED_OF_DRAM * bandwidth)


def _other_way(given: Given) -> float | None:
    return given.rate("link.h2d")


def _duplex(given: Given) -> float | None:
    ways = given.rate("link.h2d"), given.rate("link.d2h")
    if None in ways:
        return None
    both = sum(one for one in ways if one is not None)
    return both / 2 if given.is_unified else BOTH_WAYS * both


def _between_devices(given: Given) -> float | None:
    """One link and then another, at the rate of one; where there is a network at all."""
    rate = given.rate("link.h2d") if isinstance(given.table.get("network"), Mapping) else None
    return None if rate is None else rate / 2


def _pageable(direction: str) -> Callable[[Given], float | None]:
    def rate(given: Given) -> float | None:
        link, copy = given.rate(f"link.{direction}"), _copy(given)
        return None if link is None or copy is None else 1 / (1 / link + 1 / copy)

    return rate


def _of_dram(share: float) -> Callable[[Given], float | None]:
    def reached(given: Given) -> float | None:
        bandwidth = given.rate("host_memory.bandwidth")
        if bandwidth is None:
            return None
        most = share if given.cores is None else given.cores * CORE_BYTES_PER_S / bandwidth
        return min(share, most)

    return reached


def _rules() -> Iterator[Rule]:
    half = "half of the host's memory: more page-locked memory starves the system; where copies reach nothing else "
    half += "(link.locked_only), all but reserve.host"
    yield Rule("pinned", "GB", half, _pinned)
    kept = "1 GiB for driver context, kernels and a display (llama.cpp's fit-params keeps as much), at most 1/8 of it"
    yield Rule("reserve.device", "GB", kept, _device_reserve)
    tiers = "25 % of the first 4 GiB, 20 % up to 8, 10 % up to 16, 6 % up to 128 and 2 % above for operating system, "
    tiers += "other programs and Python, as Google Kubernetes Engine keeps of a node (its docs: plan-node-sizes)"
    yield Rule("reserve.host", "GB", tiers, _host_reserve)
    yield Rule("link.peak", "GB/s", "device and host share one memory, which a copy reads and writes", _link_peak)
    shares = "of link.peak 0.785 on PCIe 3.0, 0.8 on PCIe 4.0, 0.883 on PCIe 5.0 (NVIDIA/nvbandwidth measures 12.36 of "
    shares += "15.75 and 55.63 of 63 GB/s); of the host's DRAM, and of one memory that is shared, at most 0.72"
    yield Rule("link.h2d", "GB/s", shares, _one_way)
    yield Rule("link.d2h", "GB/s", "as host to device", _other_way)
    both = "both directions at 0.903 of their rate alone, as on PCIe 3.0 (12.36 to 11.16 GB/s, NVIDIA/nvbandwidth)"
    yield Rule("link.duplex", "GB/s", both, _duplex)
    rings = "network.one_way of a link, times the links of a corner of network.mesh, which bound an all-reduce"
    yield Rule("network.bandwidth", "GB/s", rings, _network)
    through = "what devices exchange goes through the host, over one link and then another: half of link.h2d"
    yield Rule("network.bandwidth", "GB/s", through, _between_devices)
    copies = "a core moves 24 GB/s and copies 12, in slower memory half of what STREAM reaches, 0.72 of the bandwidth"
    yield Rule("pin", "GB/s", copies, _copy)
    for way in ("h2d", "d2h"):
        source = f"a core copies into a page-locked buffer (12 GB/s, or less in slower memory), then link.{way}"
        yield Rule(f"link.{way}_pageable", "GB/s", source, _pageable(way))
    limit = "or 24 GB/s a core, where the cores are known and move less"
    yield Rule("host.gemm.memory", "1", f"0.7 of DRAM, a little below STREAM, {limit}", _of_dram(0.7))
    yield Rule("host.experts.memory", "1", f"0.6 of DRAM, below STREAM: uneven pieces, {limit}", _of_dram(0.6))
    attention = "0.45 of DRAM, 45 of 100 GB/s in MoE-Lightning (arXiv 2411.11217), figure 9"
    yield Rule("host.attention.memory", "1", f"{attention}, {limit}", _of_dram(0.45))


RULES_OF_RATES = tuple(_rules())
