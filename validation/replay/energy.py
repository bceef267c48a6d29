"""Joules that counters measured of a run, beside those that the simulated run draws: of what was counted alone."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from sim.cost import Cost
from sim.problem import Hardware
from sim.schedule import PipelineShape, Task
from sim.simulation import Component, Draws
from traces.trace import Trace
from validation.metrics import relative_error
from validation.replay.rebuild import TaskCosts, typed

COUNTED = {
    Component.DEVICE: (Component.DEVICE, Component.LINK),
    Component.HOST: (Component.HOST,),
    Component.HOST_MEMORY: (Component.HOST_MEMORY,),
}
"""By what is counted, the parts that its counter sees: a card's own has its end of the link in it."""

ENERGY = "energy"
"""What a trace's metadata calls what was measured."""

Phases = Mapping[str, tuple[float, Iterable[Task]]]
"""By name, how long each phase of a simulated run takes, and its tasks."""


@dataclass(frozen=True, slots=True)
class EnergyError:
    """Joules of a phase or a component, and the error of the simulated ones; None of what was too short to count."""

    what: str
    measured_j: float
    predicted_j: float
    error: float | None


@dataclass(frozen=True, slots=True)
class EnergyCheck:
    """The whole of what was counted, its phases and its components. `missing` says why others were not counted."""

    run: EnergyError
    phases: tuple[EnergyError, ...]
    components: tuple[EnergyError, ...]
    measured_j_per_token: float
    predicted_j_per_token: float
    missing: dict[str, str]


class MeasuredJoules(msgspec.Struct):
    """What a trace says of what was counted."""

    by_phase_j: dict[str, dict[str, float]]
    missing: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, trace: Trace) -> "MeasuredJoules | None":
        """None of a trace of which nobody measured any. Raises InputError for what cannot be read."""
        return None if trace.metadata.get(ENERGY) is None else typed(trace.metadata, ENERGY, cls)

    @property
    def components(self) -> list[Component]:
        """Those that were counted."""
        there = {name for own in self.by_phase_j.values() for name in own}
        return [part for part in COUNTED if part in there]

    def joules(self, phase: str, component: Component) -> float:
        """Of one component in one phase."""
        return self.by_phase_j[phase].get(component, 0.0)


def check_energy(trace: Trace, phases: Phases, costs: TaskCosts, machine: Hardware) -> EnergyCheck | None:
    """None where nothing was counted, the phases are others, or the machine's watts are not known."""
    counted = MeasuredJoules.of(trace)
    if counted is None or not counted.components or machine.power is None:
        return None
    whole = {name: one for name, one in phases.items() if name in counted.by_phase_j}
    if whole.keys() != counted.by_phase_j.keys():
        return None
    draws, parts = Draws(machine.power, machine), counted.components
    said = {name: simulated_joules(draws, costs, *one) for name, one in whole.items()}
    found = {
        (phase, part): (counted.joules(phase, part), sum(said[phase].get(one, 0.0) for one in COUNTED[part]))
        for phase in whole
        for part in parts
    }
    run = _error("whole", found.values())
    of_phases = tuple(_error(name, (pair for (phase, _), pair in found.items() if phase == name)) for name in whole)
    of_parts = tuple(_error(part, (pair for (_, own), pair in found.items() if own is part)) for part in parts)
    if run.error is None:
        return None
    each = typed(trace.metadata, "energy_j_per_token", float)
    return EnergyCheck(run, of_phases, of_parts, each, each * (1 + run.error), counted.missing)


def simulated_joules(draws: Draws, costs: TaskCosts, seconds: float, tasks: Iterable[Task]) -> dict[Component, float]:
    """What tasks draw in so many seconds, idle watts included."""
    joules = {part: watts * seconds for part, watts in draws.idle_w.items()}
    for task in tasks:
        cost: Cost = costs(task)
        for part, more in draws.active_joules(task.lane, cost).items():
            joules[part] = joules.get(part, 0.0) + more
    return joules


def in_phases(tasks: Iterable[Task], shape: PipelineShape, seconds: Mapping[str, float]) -> Phases:
    """Tasks by phase, of phases that take so long; all of them are of the only one."""
    found: dict[str, list[Task]] = {name: [] for name in seconds}
    for task in tasks:
        prompts = "prefill" in found and shape.has_prompts(task.step, task.micro_batch)
        found["prefill" if prompts else list(found)[-1]].append(task)
    return {name: (seconds[name], own) for name, own in found.items()}


def _error(what: str, pairs: Iterable[tuple[float, float]]) -> EnergyError:
    measured, predicted = map(sum, zip(*pairs, strict=True))
    return EnergyError(str(what), measured, predicted, relative_error(predicted, measured) if measured > 0 else None)
