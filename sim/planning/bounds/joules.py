"""The least joules that each policy of a space can use: what its tasks draw, and what the machine draws idle meanwhile.

What a task draws follows from its work alone, so that all tasks together draw the same in whatever order they run; what
is drawn idle is no less than the least time makes it (`sim.planning.bounds.bound`).
"""

from sim.cost import PAGEABLE_TRAFFIC, PIN_TRAFFIC, Cost, CostModel, Effort
from sim.planning.bounds.bound import active_joules_of_one
from sim.planning.bounds.durations import Measure
from sim.planning.bounds.host_layers import active_joules_of_host_layers
from sim.planning.bounds.split import CopyCosts, active_joules_of_split
from sim.planning.policies import Candidates, Floats, HostLayerCandidates, Space, SplitCandidates
from sim.problem import Hardware
from sim.schedule import H2D, Lane, Task
from sim.simulation import Draws
from traces.errors import InputError


def least_joules_per_token(space: Space, rates: Floats) -> Floats:
    """Lower bounds of the whole machine's joules for a generated token, of policies with bounds of their rate. [row].

    Raises InputError where the machine's watts are not known.
    """
    draws = draws_of(space.problem.hardware)
    return sum(draws.idle_w.values()) / rates + _active_joules(space, draws) / space.generated_tokens


def draws_of(hardware: Hardware) -> Draws:
    """What a machine draws. Raises InputError where its watts are not known."""
    if hardware.power is None:
        raise InputError(f"joules: {hardware.name} does not say what it draws: give it power.device.limit")
    return Draws(hardware.power, hardware)


def _active_joules(space: Space, draws: Draws) -> Floats:
    """What all tasks of each policy draw above idle, on all devices. [row]."""
    setup, measure = space.setup(0), _measure(draws)
    if isinstance(space, SplitCandidates):
        return setup.num_parts * active_joules_of_split(space, measure, _copies(draws))
    if isinstance(space, HostLayerCandidates):
        return setup.num_parts * active_joules_of_host_layers(space, measure)
    assert isinstance(space, Candidates), "there are no other spaces"
    return setup.num_parts * active_joules_of_one(space, measure)


def _measure(draws: Draws) -> Measure:
    def joules(costs: CostModel, task: Task, num_ranks: int) -> float:
        return num_ranks * _sum(draws, task.lane, costs(task))

    return joules


def _sum(draws: Draws, lane: Lane, cost: Cost) -> float:
    return sum(draws.active_joules(lane, cost).values())


def _copies(draws: Draws) -> CopyCosts:
    """Joules a byte: what copies wait for draws nothing."""

    def byte(copied: int, dram: int, link: int) -> float:
        return _sum(draws, H2D, Cost(1, effort=Effort(copied_bytes=copied, dram_bytes=dram, link_bytes=link)))

    pageable = byte(PAGEABLE_TRAFFIC - 1, PAGEABLE_TRAFFIC, 1)
    return CopyCosts(0.0, byte(0, 1, 1), pageable, 0.0, byte(PIN_TRAFFIC, PIN_TRAFFIC, 0))
