"""The joules of a generation, from how often each task is issued and what it does: when it ran changes nothing of them.

So nothing is simulated once more. The tasks of a step are those of the compiled path's programs, and steps that were
interpolated are in proportion to the same ones: the two paths give the same joules.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from sim.cost import Setup
from sim.problem import Hardware
from sim.simulation import compiled  # its door loads numba only when it is asked for something
from sim.simulation.energy.draws import NS, Component, Draws, Joules, added
from sim.simulation.energy.energy import Drawn, Energy
from sim.simulation.sampling import StepShare


def energy_of(setup: Setup, steps: Sequence[StepShare], spans_s: tuple[float, float]) -> Energy | None:
    """What a generation of these steps draws, whose phases take so long; None where the machine's watts are unknown."""
    hardware = setup.problem.hardware
    if hardware.power is None:
        return None
    draws = Draws(hardware.power, hardware)
    idle_w, tasks = draws.idle_w, _StepTasks(setup, draws)
    phases: tuple[Joules, Joules] = ({}, {})
    peak_w = 0.0
    for step, span_ns, weight in steps:
        joules = tasks.joules(step)
        added(phases[step > 0], joules, weight)
        peak_w = max(peak_w, sum(idle_w.values()) + sum(joules.values()) / (span_ns * NS))
    for phase, span_s in zip(phases, spans_s, strict=True):
        added(phase, idle_w, span_s)
    whole = dict(phases[0])
    added(whole, phases[1])
    batch = setup.batch
    return Energy(
        span_s=sum(spans_s),
        num_requests=batch.num_requests,
        generated_tokens=batch.generated_tokens,
        joules=whole,
        idle_w=idle_w,
        prefill_j=phases[0],
        decode_j=phases[1],
        peak_w=peak_w,
    )


def active_of(setup: Setup, steps: Sequence[StepShare]) -> Joules:
    """What the tasks of these steps draw above idle; nothing where the machine's watts are unknown."""
    hardware, found = setup.problem.hardware, Joules()
    if hardware.power is not None:
        tasks = _StepTasks(setup, Draws(hardware.power, hardware))
        for step, _, weight in steps:
            added(found, tasks.joules(step), weight)
    return found


def drawn_by(
    hardware: Hardware, active_j: Mapping[Component, float], span_s: float, num_requests: int, generated_tokens: int
) -> Drawn | None:
    """A run whose tasks drew so much above idle; None where the machine's watts are unknown."""
    if hardware.power is None:
        return None
    joules, idle_w = dict(active_j), Draws(hardware.power, hardware).idle_w
    added(joules, idle_w, span_s)
    return Drawn(
        span_s=span_s, num_requests=num_requests, generated_tokens=generated_tokens, joules=joules, idle_w=idle_w
    )


class _StepTasks:
    """What the tasks of each step of a generation draw above idle, on all devices."""

    def __init__(self, setup: Setup, draws: Draws) -> None:
        self._draws, self._costs, self._parts = draws, setup.costs(), setup.num_parts
        costs, last = self._costs, setup.last_step
        program = compiled.program_of(setup.schedule, setup.shape, setup.num_ranks, 0, last)
        self._kinds = compiled.task_kinds(program, costs.layer_kinds, costs.batch_kinds, costs.page_kinds)
        self._issued = program.kinds(0, last + 1, last)
        self._growing = frozenset(self._kinds.growing)
        self._of_kind: dict[int, Joules] = {}

    def joules(self, step: int) -> Joules:
        """Of all tasks that the step issues."""
        found: Joules = {}
        counts = self._kinds.counts(self._issued[step])
        for kind in np.flatnonzero(counts).tolist():
            added(found, self._joules_of(kind, step), float(counts[kind]) * self._parts)
        return found

    def _joules_of(self, kind: int, step: int) -> Joules:
        """Of one task of a kind; that of one that grows with the context is another in each step."""
        example = self._kinds.examples[kind]
        if kind in self._growing and step + example.step > 0:
            task = example._replace(step=step + example.step)
            return self._draws.active_joules(task.lane, self._costs(task))
        if kind not in self._of_kind:
            task = self._kinds.static[kind]
            self._of_kind[kind] = self._draws.active_joules(task.lane, self._costs(task))
        return self._of_kind[kind]
