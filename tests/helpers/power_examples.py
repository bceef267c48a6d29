"""Machines of which it is known what they draw, and what a trace's counter of power adds up to."""

from collections import defaultdict
from dataclasses import replace
from itertools import pairwise

from sim.problem import Basis, Power, ProcessorPower, Quantity, RestPower, TransferPower
from traces.trace import POWER

NS = 1e-9


def watts(value):
    return Quantity(value, "W", Basis.ASSUMED, "test")


def per_byte(value):
    return Quantity(value, "pJ/B", Basis.ASSUMED, "test")


def a_power(*, devices=1, supply=0.8, scale=1.0):
    """Numbers of which no two are equal; `scale` multiplies every watt and joule."""
    return Power(
        ProcessorPower(*(watts(scale * one) for one in (40, 150, 110, 180))),
        TransferPower(watts(scale * 7), per_byte(scale * 130)),
        TransferPower(watts(scale * 3), per_byte(scale * 70)),
        RestPower(watts(scale * 30), Quantity(supply, "1", Basis.ASSUMED, "test")),
        ProcessorPower(*(watts(scale * one) for one in (50, 300, 240, 310))),
        TransferPower(watts(scale * 2), per_byte(scale * 90)) if devices > 1 else None,
    )


def with_power(machine, **numbers):
    """The machine, with what it draws."""
    return replace(machine, power=a_power(devices=machine.num_devices, **numbers))


def powered(setup, **numbers):
    """The same setup on its machine with what that draws."""
    problem = setup.problem
    return replace(setup, problem=replace(problem, hardware=with_power(problem.hardware, **numbers)))


def integral(trace):
    """Joules by part under the trace's counter of power, from its first sample to its last; of all devices together."""
    by_rank, found = defaultdict(list), defaultdict(float)
    for one in trace.counters:
        if one.name == POWER:
            by_rank[one.rank].append(one)
    for samples in by_rank.values():
        for now, then in pairwise(samples):
            for part, drawn in now.values.items():
                found[part] += drawn * (then.time_ns - now.time_ns) * NS
    return dict(found)
