"""A `Hardware` from what was measured, every number with its source; what cannot be measured here says so."""

import os
import platform
from dataclasses import replace
from pathlib import Path

import torch

from engine.calibration.measure import Measured, Probes
from engine.device import Device, host_memory_bytes
from sim.problem import (
    Basis,
    DeviceProcessor,
    Efficiency,
    Emulation,
    Hardware,
    Host,
    Link,
    Memory,
    Quantity,
    Reserve,
    kept_on_host_bytes,
    page_lockable_bytes,
)

ROOM = 4.0
"""Times the measured peaks that rates may reach in a fit: weights that stay in caches are read faster than memory."""

MORE_STARVES = "half of the host's memory: more page-locked memory starves the system"
KEPT_ON_HOST = "for operating system, other programs and Python, as Google Kubernetes Engine keeps of a node"
NO_COST = "no cost of its own was found"
NOT_MEASURED = "not measured: only decode attention and routed experts run on the host"
GUESSED = "no task showed it: a guess"
NO_RUN = "no run showed tasks both alone and beside others"

FITTED = ("gemm", "experts", "attention", "head", "decode_attention", "route", "experts_apart")
"""The classes of work on the device."""


def host_facts() -> str:
    """The processor, its cores, the memory and the versions that a measurement belongs to."""
    cores, memory, python = os.cpu_count() or 1, host_memory_bytes() / 2**30, platform.python_version()
    return f"{_cpu_name()}, {cores} cores, {memory:.1f} GiB, Python {python}, torch {torch.__version__}"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def unfitted(
    name: str,
    device: Device,
    probes: Probes,
    split_cost: Measured | None = None,
    unpack_rate: Measured | None = None,
    host_unpack_rate: Measured | None = None,
) -> Hardware:
    """The machine as the probes see it, with every class of work at the start of its fit.

    `split_cost` is what experts take longer in two parts: the fixed time of their class, which is not fitted then.
    `unpack_rate` is how fast the device unpacks them, `host_unpack_rate` how fast the host computes with packed ones:
    they are fitted to nothing either.
    """
    link, unshown = probes.link, Emulation(*(_assumed(share, "1", NO_RUN) for share in (0.2, 1.0)))
    peak = Quantity(max(link.h2d.high, link.d2h.high) / 1e9, "GB/s", Basis.MEASURED, "the faster direction of the link")
    return Hardware(
        name=name,
        description=f"{device.origin} on {host_facts()}",
        num_devices=1,
        pinned_bytes=_assumed(page_lockable_bytes(host_memory_bytes()), "B", MORE_STARVES),
        pin_bytes_per_s=probes.host_copy.quantity("GB/s", 1e9),
        device=_device(_roomy(probes.device_peak.quantity("GFLOPS", 1e9)), split_cost, unpack_rate),
        device_memory=Memory(
            Quantity(float(device.memory_bytes), "B", Basis.MEASURED, "memory that the device was given"),
            _roomy(probes.device_read.quantity("GB/s", 1e9)),
        ),
        host=_host(probes.host_peak.quantity("GFLOPS", 1e9), host_unpack_rate),
        host_memory=Memory(
            Quantity(
                float(host_memory_bytes()),
                "B",
                Basis.MEASURED,
                "physical memory of the host, or what a container grants of it",
            ),
            probes.host_read.quantity("GB/s", 1e9),
        ),
        link=Link(
            peak_bytes_per_s=peak,
            h2d_bytes_per_s=link.h2d.quantity("GB/s", 1e9),
            d2h_bytes_per_s=link.d2h.quantity("GB/s", 1e9),
            duplex_bytes_per_s=link.together.quantity("GB/s", 1e9),
            h2d_pageable_bytes_per_s=link.h2d_pageable.quantity("GB/s", 1e9),
            d2h_pageable_bytes_per_s=link.d2h_pageable.quantity("GB/s", 1e9),
            latency_s=link.latency.quantity("us", 1e-6),
        ),
        reserve=Reserve(
            Quantity(0.0, "B", Basis.MEASURED, "the device's memory is what was free of it"),
            _assumed(kept_on_host_bytes(host_memory_bytes()), "B", KEPT_ON_HOST),
        ),
        emulation=None if device.gpu_threads is None else unshown,
    )


def _assumed(value: float, unit: str, why: str) -> Quantity:
    return Quantity(value, unit, Basis.ASSUMED, why)


def _roomy(measured: Quantity) -> Quantity:
    return measured.replaced(measured * ROOM, measured.source, Basis.MEASURED)


def _device(peak: Quantity, split_cost: Measured | None, unpack_rate: Measured | None) -> DeviceProcessor:
    share, latency, nothing = _assumed(0.1, "1", GUESSED), _assumed(100.0, "us", GUESSED), _assumed(0.0, "us", NO_COST)
    every = Efficiency(share, share, latency, share)
    made = DeviceProcessor(
        peak,
        nothing,
        nothing,
        every,
        every,
        every,
        head=every,
        decode_attention=every,
        route=every,
        experts_apart=every,
    )
    if unpack_rate is not None:
        made = replace(made, unpack_bytes_per_s=unpack_rate.quantity("GB/s", 1e9))
    if split_cost is None:
        return made
    found = split_cost.quantity("us", 1e-6)
    latency = found.replaced(max(0.0, found), found.source, found.basis)
    return replace(made, experts=replace(made.experts, latency_s=latency))


def _host(peak: Quantity, unpack_rate: Measured | None) -> Host:
    """Decode attention and routed experts run on the host: they are fitted, the rest is there because files need it."""
    whole, nothing = _assumed(1.0, "1", NOT_MEASURED), _assumed(0.0, "us", NO_COST)
    every = Efficiency(whole, whole)
    experts = Efficiency(whole, whole, nothing)
    made = Host(peak, nothing, nothing, every, experts, every, decode_attention=every)
    if unpack_rate is None:
        return made
    return replace(made, unpack_bytes_per_s=unpack_rate.quantity("GB/s", 1e9))


def settled(hardware: Hardware) -> Hardware:
    """The machine after its fit: the device's peaks come down to what was measured or, if that is more, reached."""
    for share, peak in (("compute", "device.peak"), ("memory", "device_memory.bandwidth")):
        paths = [f"device.{name}.{share}" for name in FITTED if getattr(hardware.device, name)]
        most = max(1 / ROOM, *(hardware.value(path) for path in paths))
        for path in paths:
            old = hardware.value(path)
            hardware = hardware.with_value(path, min(1.0, old / most), old.source, old.basis)
        roomy = hardware.value(peak)
        above = f"the highest rate that a class of work reached; above the {roomy.source}"
        source = above if most > 1 / ROOM else roomy.source
        hardware = hardware.with_value(peak, roomy * most, source, Basis.MEASURED)
    return hardware
