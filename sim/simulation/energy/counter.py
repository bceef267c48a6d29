"""Power over time, part by part: what a machine draws idle, and on it each task's joules spread over its time."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter

from sim.problem import Hardware
from sim.simulation.energy.draws import NS, OF_A_DEVICE, Component, Draws
from sim.simulation.simulator import Executed
from traces.trace import NONE, POWER, Counter

Of = tuple[int, Component]
"""A part of a machine: of which device, or NONE of the host."""


def power_counters(hardware: Hardware, executed: Sequence[Executed], parts: int = 1) -> Iterator[Counter]:
    """Samples of what each part draws, from the start to the last task's end; none where the watts are not known.

    Devices that each do their own one of so many parts of the batch do alike: each has a counter.
    """
    if hardware.power is None or not executed:
        return
    draws = Draws(hardware.power, hardware)
    ranks = range(hardware.num_devices)
    idle_w = {of: watts for part, each in draws.idle_w.items() for of, watts in _parts_of(part, each, ranks)}
    active_w: defaultdict[Of, dict[int, float]] = defaultdict(dict)
    yield from (_sample(idle_w, active_w, rank, 0) for rank in (*ranks, NONE))
    edges = sorted(_edges(draws, executed, parts), key=itemgetter(0))
    for time_ns, changes in groupby(edges, itemgetter(0)):
        changed: set[int] = set()
        for _, of, task, watts in changes:
            changed.add(of[0])
            if watts:
                active_w[of][task] = watts
            else:
                del active_w[of][task]
        yield from (_sample(idle_w, active_w, rank, time_ns) for rank in sorted(changed))


def _parts_of(part: Component, watts: float, ranks: range) -> Iterator[tuple[Of, float]]:
    """What all devices draw, of each of them; of the host's, of it."""
    if part in OF_A_DEVICE:
        yield from (((rank, part), watts / len(ranks)) for rank in ranks)
    else:
        yield (NONE, part), watts


def _edges(draws: Draws, executed: Sequence[Executed], parts: int) -> Iterator[tuple[int, Of, int, float]]:
    """When a part begins, and no longer goes on, to draw so much for a task: first what ends."""
    for one in executed:
        seconds = (one.end_ns - one.start_ns) * NS
        rank = one.task.lane.rank
        for part, joules in draws.active_joules(one.task.lane, one.cost).items():
            alike = range(rank, rank + parts) if part in OF_A_DEVICE else (NONE,)
            watts = joules / seconds * (1 if part in OF_A_DEVICE else parts)
            for of in alike:
                yield one.start_ns, (of, part), one.task.id, watts
                yield one.end_ns, (of, part), one.task.id, 0.0


def _sample(idle_w: dict[Of, float], active_w: defaultdict[Of, dict[int, float]], rank: int, time_ns: int) -> Counter:
    watts = {str(of[1]): idle + sum(active_w[of].values()) for of, idle in idle_w.items() if of[0] == rank}
    return Counter(POWER, time_ns, watts, rank)
