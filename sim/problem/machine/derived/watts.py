"""What a machine draws that no file says, from what its device may draw: see `sim.problem.machine.power`."""

from collections.abc import Callable, Iterator, Mapping

from sim.problem.machine.derived.given import Given, Rule
from sim.problem.machine.power import IDLE_OF_DEVICE, reading_watts
from sim.problem.machine.quantity import Dimension

HOST_W = 130.0
"""What a package draws that computes 1 TFLOPS in 32 bits; others by the root of them: more cores clock lower."""
IDLE_W_PER_BYTE = 0.05e-9
DRAM_J_PER_BYTE = 150e-12
LINK_J_PER_BYTE = 64e-12
REST_W = 50.0


def _of_device(share: float) -> Callable[[Given], float | None]:
    def draws(given: Given) -> float | None:
        limit = given.device_limit_w
        return None if limit is None else share * limit

    return draws


def _device_reads(given: Given) -> float | None:
    limit, bandwidth = given.device_limit_w, given.rate("device_memory.bandwidth")
    return None if limit is None or bandwidth is None else reading_watts(limit, bandwidth)


def _host_limit(given: Given) -> float | None:
    """Of one package what the device may draw, too."""
    limit, peak = given.device_limit_w, given.number("host.peak", Dimension.COMPUTE)
    if limit is None or peak is None:
        return None
    return limit if given.is_unified else HOST_W * (peak / 1e12) ** 0.5


def _of_host(share: float, of_one_package: float | None = None) -> Callable[[Given], float | None]:
    def draws(given: Given) -> float | None:
        limit = given.number("power.host.limit", Dimension.POWER)
        of_it = share if of_one_package is None or not given.is_unified else of_one_package
        return None if limit is None else of_it * limit

    return draws


def _memory_idle(given: Given) -> float | None:
    """Of one memory it is in what the package's board draws, which is in `device` already."""
    capacity = given.size("host_memory.capacity")
    if capacity is None or given.device_limit_w is None:
        return None
    return 0.0 if given.is_unified else IDLE_W_PER_BYTE * capacity


def _where_device_is(value: float, of_one_package: float | None = None) -> Callable[[Given], float | None]:
    """A usual value for each machine of which it is known what its device may draw."""

    def usual(given: Given) -> float | None:
        if given.device_limit_w is None:
            return None
        return value if of_one_package is None or not given.is_unified else of_one_package

    return usual


def _network_j_per_byte(given: Given) -> float | None:
    return LINK_J_PER_BYTE if isinstance(given.table.get("network"), Mapping) and given.device_limit_w else None


def _no_watts_of_network(given: Given) -> float | None:
    return None if _network_j_per_byte(given) is None else 0.0


def _rules() -> Iterator[Rule]:
    context = "0.2 of the limit: a CUDA context adds 26 to 50 W to what A100 and H100 idle at, 66 W to an L40S "
    context += "(arXiv 2605.23918), of which an A100 draws 62 of 400 W (github.com/chuyishang/inference-energy)"
    yield Rule("power.device.idle", "W", context, _of_device(IDLE_OF_DEVICE))
    yield Rule("power.device.compute", "W", "the limit, up to which clocks rise", _of_device(1.0))
    reads = "idle, and 375 pJ a byte read, its cores included, at most 0.95 of the limit: llama.cpp decodes at 350 of "
    reads += "350 W on an RTX 3090 (jeanfbrito.github.io/posts/rtx-3090-power-limit-sweet-spot), 390 of 450 on an "
    reads += "RTX 4090 (thegeniusfactory.net), 173 of 180 on an RTX 5060 Ti (inventivehq.com/blog)"
    yield Rule("power.device.memory", "W", reads, _device_reads)
    packages = "130 W times the root of its fp32 TFLOPS: 145 for 1.25 (EPYC 7313P: 155, metebalci.com), 276 for 4.5 "
    packages += "(Xeon Gold 6454S: 270), 353 for 7.4 (EPYC 9654: 360)"
    yield Rule("power.host.limit", "W", packages, _host_limit)
    idle = (
        "0.3 of the limit: EPYC packages of 225 to 280 W idle at 65 (Rome) to 111 W (Milan: anandtech.com/show/16529)"
    )
    yield Rule("power.host.idle", "W", idle, _of_host(0.3, of_one_package=0.0))
    yield Rule("power.host.compute", "W", "the limit, up to which clocks rise", _of_host(1.0))
    yield Rule("power.host.memory", "W", "0.8 of the limit: all cores are awake, and wait for DRAM", _of_host(0.8))
    dimm = "0.05 W a GB: some 1.5 W for a module of 32 GB that only refreshes itself"
    yield Rule("power.host_memory.idle", "W", dimm, _memory_idle)
    moved = (
        "19 pJ a bit of DDR4: a module of 16 GB draws 4.5 W at 25.6 GB/s (linuxleech.com/article/3947.html), 1 W idle"
    )
    yield Rule("power.host_memory.moved", "pJ/B", moved, _where_device_is(DRAM_J_PER_BYTE))
    yield Rule("power.link.idle", "W", "in what device and host draw", _where_device_is(0.0))
    both = "8 pJ a bit: transmitters and receivers of both ends; copies within one memory pass none"
    yield Rule("power.link.moved", "pJ/B", both, _where_device_is(LINK_J_PER_BYTE, of_one_package=0.0))
    yield Rule("power.network.idle", "W", "in what devices and host draw", _no_watts_of_network)
    yield Rule("power.network.moved", "pJ/B", "as of the link", _network_j_per_byte)
    rest = "board, fans and disks; where device and host are one package, a small box"
    yield Rule("power.rest.idle", "W", rest, _where_device_is(REST_W, of_one_package=REST_W / 5))
    yield Rule("power.rest.supply", "1", "80 PLUS Gold at half its load: 0.9", _where_device_is(0.9))


RULES_OF_WATTS = tuple(_rules())
