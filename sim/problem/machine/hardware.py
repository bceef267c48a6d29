"""A machine to offload on: devices, host, memories and links, every number with its unit, basis and source."""

import bisect
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from sim.problem.machine.cards import machine_names
from sim.problem.machine.chips import Network, Tiles
from sim.problem.machine.derived import completed
from sim.problem.machine.devices import OtherDevice, check_devices
from sim.problem.machine.files import machine_table
from sim.problem.machine.power import LAW_OF_CAPS, Power
from sim.problem.machine.quantity import Basis, Quantity
from sim.problem.machine.tables import Part
from traces.errors import InputError, check_count, error_prefix, nearest
from traces.files import shown_path

MEASURED_ALIKE = 0.01
"""Two measurements of one rate may differ by so much."""

_SUSTAINED = ("link.h2d", "link.d2h", "link.h2d_pageable", "link.d2h_pageable")


@dataclass(frozen=True, slots=True)
class Memory(Part):
    """One memory: how much it holds, and how fast its own processor reads it at best."""

    capacity_bytes: Quantity
    bandwidth_bytes_per_s: Quantity


@dataclass(frozen=True, slots=True)
class AtTokens(Part):
    """What work on so many tokens takes over what roofs and fixed times say: kernels cut matrices into tiles.

    Of experts on the host, `tokens` are those of an expert, on average.
    """

    tokens: int
    time_ratio: Quantity


@dataclass(frozen=True, slots=True)
class Efficiency(Part):
    """The share of the peaks that one class of ops reaches, above 0 and at most 1, and a fixed time of such work."""

    compute: Quantity
    memory: Quantity
    latency_s: Quantity | None = None
    """What work of this class takes on top of the launch latency however small it is: its kernels, one by one."""
    overlap: Quantity | None = None
    """Share of the shorter of compute and memory traffic that hides behind the longer; if not given all (HRM)."""
    at_tokens: tuple[AtTokens, ...] = ()
    """By ascending tokens; none: as the roofs say."""

    def __post_init__(self) -> None:
        Part.__post_init__(self)
        given = [one.tokens for one in self.at_tokens]
        if given and (given[0] < 1 or any(after <= before for before, after in itertools.pairwise(given))):
            raise InputError(f"at_tokens: {given} is not allowed; tokens must ascend from 1 or more")

    def time_ratio(self, tokens: float) -> float:
        """Time over what the roofs say, for work on `tokens` tokens.

        Between two given numbers it follows the logarithm of the tokens, beyond them it stays what it is at the last.
        """
        if not self.at_tokens:
            return 1.0
        at = bisect.bisect_right(self.at_tokens, tokens, key=lambda one: one.tokens)
        if at in (0, len(self.at_tokens)):
            return float(self.at_tokens[max(0, at - 1)].time_ratio)
        before, after = self.at_tokens[at - 1], self.at_tokens[at]
        share = math.log(tokens / before.tokens) / math.log(after.tokens / before.tokens)
        return (1 - share) * before.time_ratio + share * after.time_ratio


@dataclass(frozen=True, slots=True)
class Processor(Part):
    """A device or the host's cores.

    `launch_latency_s` is a fixed cost of every task, `request_overhead_s` one of every request in decode attention.
    `head` is the class of LM head, sampling and the next embedding; without it they count as `gemm`.
    `decode_attention` is that of one new token a request; without it it counts as `attention`. On the host it is that
    of a kernel which reads the KV cache where it lies, also for schedules whose own systems copy it first.
    Where experts are computed apart from their layers, `route` is the class of what stands before them, output
    projection, norm and router (without it `gemm`), and `experts_apart` theirs (without it `experts`).
    `unpack_bytes_per_s` counts weights as the model computes with them, made of experts that are stored in fewer bits;
    without it that takes no time. A device makes them before it computes; the host does a few numbers at a time while
    it computes, so that what takes longest counts.
    """

    peak_flops_per_s: Quantity
    launch_latency_s: Quantity
    request_overhead_s: Quantity
    gemm: Efficiency
    experts: Efficiency
    attention: Efficiency
    head: Efficiency | None = None
    decode_attention: Efficiency | None = None
    route: Efficiency | None = None
    experts_apart: Efficiency | None = None
    unpack_bytes_per_s: Quantity | None = None

    @property
    def classes(self) -> tuple[Efficiency, ...]:
        """All that are given."""
        values = (getattr(self, one.name) for one in fields(self))
        return tuple(value for value in values if isinstance(value, Efficiency))


@dataclass(frozen=True, slots=True)
class DeviceProcessor(Processor):
    """What computes on a device, in whole `tiles` if it has some.

    With `expert_capacity_ratio` its shapes are fixed before tokens choose: each routed expert computes so many times
    its even share of them, and no more than all, whatever comes. Without it experts compute what comes.
    """

    tiles: Tiles | None = None
    expert_capacity_ratio: Quantity | None = None


@dataclass(frozen=True, slots=True)
class Host(Processor):
    """The host's cores. How many there are limits what they move, where no share of DRAM is given."""

    cores: int | None = None

    def __post_init__(self) -> None:
        Processor.__post_init__(self)
        if self.cores is not None:
            check_count("cores", self.cores)


@dataclass(frozen=True, slots=True)
class Reserve(Part):
    """Of each memory, what others keep: a driver's context and a display; the operating system and Python."""

    device_kept_bytes: Quantity
    host_kept_bytes: Quantity


@dataclass(frozen=True, slots=True)
class Link(Part):
    """The link of one device to the host.

    `peak` is the theoretical rate of one direction (the HRM's roof), the others are sustained. `duplex` is the sum of
    both directions when both are busy. `*_pageable` is for copies from or to memory that is not page-locked. There are
    none where it is `locked_only`: as programs of XLA see it, whose arrays on the host are all in `pinned_host`.
    """

    peak_bytes_per_s: Quantity
    h2d_bytes_per_s: Quantity
    d2h_bytes_per_s: Quantity
    duplex_bytes_per_s: Quantity
    h2d_pageable_bytes_per_s: Quantity
    d2h_pageable_bytes_per_s: Quantity
    latency_s: Quantity
    locked_only: bool = False


@dataclass(frozen=True, slots=True)
class Emulation(Part):
    """A device that the host's own cores and memory play: what it does, it takes from the host.

    Its lanes are threads of one interpreter beside each other in the same caches. `interpreter_share` is the share of
    its time in which a task needs what they share, so that work beside it waits: at 1 two tasks take turns, at 1/2 they
    do not meet. Copies, and copies into page-locked memory, need it only if they are so small that latency is most of
    them. `beside_stream` is the share of its speed that compute on the device keeps in decode while weights or KV cache
    stream, which share its caches.
    """

    interpreter_share: Quantity
    beside_stream: Quantity


@dataclass(frozen=True, slots=True)
class OptimizerConstants(Part):
    """The constants that MoE-Lightning's own policy optimizer was given, per device (its artifact, branch asplos25).

    They are not what the machine does: they are here so that the paper's estimates can be reproduced.
    """

    gpu_memory_bytes: Quantity
    gpu_bandwidth_bytes_per_s: Quantity
    gpu_peak_flops_per_s: Quantity
    cpu_memory_bytes: Quantity
    cpu_bandwidth_bytes_per_s: Quantity
    cpu_peak_flops_per_s: Quantity
    link_bytes_per_s: Quantity


@dataclass(frozen=True, slots=True)
class Hardware(Part):
    """A host with `num_devices` equal devices. Host memory and cores are shared; each device has a link of its own.

    Where it is `unified`, one device and the host have one memory, which `device_memory` and `host_memory` describe
    both: its capacity is there once, its bandwidth is shared, and the link stands for copies within it. `reserve` is
    what of the memories no plan may use; a machine without one keeps nothing.
    `pinned_bytes` limits page-locked host memory; `pin_bytes_per_s` is the rate at which pageable memory is copied into
    it, by as many threads as the engine stages with; where these are all cores, devices that stage at once share it:
    `pin_shared`. `network` is there exactly when there are several devices.
    `hand_over_s` is how long after a task's end another lane notices it: the wait on an event, or until a thread wakes;
    if not given, none.
    """

    name: str
    description: str
    num_devices: int
    pinned_bytes: Quantity
    pin_bytes_per_s: Quantity
    device: DeviceProcessor
    device_memory: Memory
    host: Host
    host_memory: Memory
    link: Link
    unified: bool = False
    pin_shared: bool = False
    reserve: Reserve | None = None
    network: Network | None = None
    disk: Memory | None = None
    optimizer: OptimizerConstants | None = None
    emulation: Emulation | None = None
    hand_over_s: Quantity | None = None
    power: Power | None = None
    """What it draws; without it, a run has no joules."""
    other_devices: tuple[OtherDevice, ...] = ()
    """What else is in the machine and no plan uses: it is not equal to the devices that are planned with."""

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise InputError("name: it is empty; give the machine a name")
        check_count("num_devices", self.num_devices)
        if self.num_devices > 1 and self.network is None:
            raise InputError(f"network: missing; {self.num_devices} devices need one for their all-reduces")
        if self.num_devices == 1 and self.network is not None:
            raise InputError("network: one device has none; remove it, or set num_devices")
        if self.network is not None:
            self.network.check_devices(self.num_devices)
        if self.unified and self.num_devices > 1:
            raise InputError(
                f"unified: {self.num_devices} devices do not share one memory with the host; set one of both"
            )
        Part.__post_init__(self)

    @classmethod
    def presets(cls) -> tuple[str, ...]:
        """Return the names of the machines that come with the project."""
        return machine_names()

    @classmethod
    def load(cls, name_or_path: str | Path, settings: Sequence[str] = ()) -> Self:
        """Return a preset by name, the machine in a `.toml` file, or the machine at hand: `auto`.

        A preset is found as people write it: `rtx4090`, `4090`, `RTX 4090`. A file may start from a preset or another
        file with `extends = "gcp-t4"` and give only what differs. Settings such as `link.h2d=24GB/s` lie on top. What
        no file gives follows from what they give: `derived` says how. Raises InputError, one line, for what is wrong.
        """
        name = str(name_or_path)
        table = machine_table(name, settings, cls)
        with error_prefix(f"{shown_path(name_or_path)}: "):
            check_devices(table)
            found = cls.from_dict(completed(table))
            found.check_agreement()
            return found

    def check_agreement(self) -> None:
        """Raise InputError where a number is more than another allows. A what-if that changes one alone is no file."""
        for name, times, of in _most_of(self):
            number, most = self.value(name), self.value(of)
            if number > times * most * (1 + MEASURED_ALIKE):
                twice = "twice " if times > 1 else ""
                raise InputError(f"{name}: {number.text} is more than {twice}{of}, {most.text}: mend one of them")
        if self.unified:
            for name in ("capacity", "bandwidth"):
                device, host = self.value(f"device_memory.{name}"), self.value(f"host_memory.{name}")
                if device != host:
                    raise InputError(
                        f"host_memory.{name}: {host.text} is not device_memory.{name}, {device.text}: they are one "
                        "memory, as unified says; give both the same"
                    )

    @property
    def staging_bytes_per_s(self) -> float:
        """What one device's lane copies into page-locked memory while those of all others do, too."""
        return self.pin_bytes_per_s / (self.num_devices if self.pin_shared else 1)

    def write(self, path: str | Path) -> None:
        """Write the machine's file; `load` gives the same machine back. Raises InputError if it cannot be written."""
        import tomli_w

        from traces.cli import writing

        if Path(path).suffix != ".toml":
            raise InputError(f"{path}: a machine's file ends in .toml")
        writing(path, lambda name: Path(name).write_text(tomli_w.dumps(self.to_dict()), encoding="utf-8"))

    def value(self, path: str) -> Quantity:
        """Return the number at a dotted path such as `link.h2d`. Raises InputError when there is none."""
        known = dict(self.quantities())
        if path not in known:
            raise InputError(f"{path}: no such number in {self.name}{nearest(path, known)}; known: {', '.join(known)}")
        return known[path]

    def with_value(
        self, path: str, si_value: float, source: str = "given by the caller", basis: Basis = Basis.ASSUMED
    ) -> Self:
        """Return the machine with the number at `path` set, in the SI base unit. Raises InputError."""
        value = self.value(path).replaced(si_value, source, basis)
        table, dot, _ = path.rpartition(".")
        with error_prefix(table + dot):
            return self.replaced(path, value)

    def scaled(self, path: str, factor: float) -> Self:
        """Return the machine with the number at `path` multiplied by `factor`, and assumed. Raises InputError."""
        return self.with_value(path, self.value(path) * factor, f"{factor:g} × the value of {self.name}")

    def with_power(self, known: Mapping[str, Any]) -> Self:
        """Return the machine with what is known of its watts, as tables of its file; what is not follows from it.

        Raises InputError where too little is known.
        """
        return type(self).from_dict(completed({**self.to_dict(), "power": dict(known)}))

    def capped(self, watts: float) -> Self:
        """Return the machine with each device held to so many watts: its clocks fall, and its memory's do not.

        Raises InputError where the machine's watts are not known, and for so few that the law of caps does not hold.
        """
        device = self.power.device if self.power else None
        if self.power is None or device is None:
            raise InputError(f"power cap: {self.name} has no [power.device]; give its idle, compute, memory and limit")
        source = f"{watts:g} W a device: {LAW_OF_CAPS}"
        held = device.capped(watts, source)
        found = self
        for path, keeps in device.rates_under(watts).items():
            if keeps < 1.0:
                found = found.with_value(path, found.value(path) * keeps, source)
        return replace(found, power=replace(self.power, device=held))


def _most_of(machine: Hardware) -> Iterator[tuple[str, int, str]]:
    """Which number is at most how many times which other."""
    yield from ((name, 1, "link.peak") for name in _SUSTAINED)
    yield "link.duplex", 2, "link.peak"
    yield "pinned", 1, "host_memory.capacity"
    if machine.emulation is None:  # whose copies may stay in caches
        yield from ((name, 1, "host_memory.bandwidth") for name in ("link.h2d", "link.d2h", "pin"))
    if machine.reserve is not None:
        yield "reserve.device", 1, "device_memory.capacity"
        yield "reserve.host", 1, "host_memory.capacity"
    if machine.power is not None:
        of = ["power.host", *(["power.device"] if machine.power.device else [])]
        for processor, draws in itertools.product(of, ("compute", "memory")):
            yield f"{processor}.idle", 1, f"{processor}.{draws}"
            yield f"{processor}.{draws}", 1, f"{processor}.limit"
