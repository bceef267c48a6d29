"""The first steps of a simulated stream as a trace: every task of them, and who was in.

They are simulated once more, all in one, as one behind the other is enough for how long each takes but not for what
lanes do at the same time. Where nobody was there, lanes stand still until the next request has come.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from sim.admission import AdmissionRules, RequestStream
from sim.cost import Cost
from sim.schedule import PipelineShape, Schedule, Task
from sim.simulation.energy import power_counters
from sim.simulation.simulator import Executed, Simulation
from sim.simulation.stream.record import ServedRequest, ServedStep, StreamRecord
from sim.simulation.stream.serving import StreamRun
from sim.simulation.stream.setup import StreamSetup
from sim.simulation.stream.steps import FIRST, WorkCosts
from sim.simulation.views import describe_shape, link_rates, span_of
from traces.trace import Trace

ENDLESS = 1 << 40
"""Steps of a stream, as far as its schedule knows: it ends when nobody is left."""

RECORDED_STREAM_STEPS = 24
"""So many can be looked at: enough for requests to come, to go, and to be followed by others."""


def record_stream(
    setup: StreamSetup,
    stream: RequestStream,
    rules: AdmissionRules,
    metadata: dict[str, Any],
    num_steps: int = RECORDED_STREAM_STEPS,
) -> Trace:
    """Serve a stream under rules and keep everything of its first steps."""
    setup = setup.holding(stream)
    run = StreamRun.of(setup, stream, rules)
    served = tuple(islice(run.steps(), num_steps))
    ended = {one.id: (one.first_token_ns, one.end_ns) for one in run.done}
    requests = tuple(ServedRequest(one, *ended.get(one.id, ())) for one in stream.requests)
    costs = ServedCosts(setup, served)
    tasks = stream_tasks(setup.schedule, setup.shape, len(served))
    executed = simulate_stretches(stretches(tasks, served), costs, costs.capacities, costs.hand_over_ns)
    described = {
        "origin": "simulated",
        "schedule": setup.schedule.name,
        "model": setup.problem.model.name,
        "hardware": setup.problem.hardware.name,
        "policy": setup.policy.to_dict(),
        "shape": describe_shape(setup.shape),
        **StreamRecord(rules, requests, served).to_metadata(),
        **metadata,
    }
    counters = [one.counter(rules) for one in served]
    counters += [*link_rates(executed), *power_counters(setup.problem.hardware, executed)]
    return Trace(described, [span_of(one) for one in executed], counters)


def stream_tasks(schedule: Schedule, shape: PipelineShape, num_steps: int) -> Iterator[list[Task]]:
    """Those of the first steps of a stream, one list a step."""
    return schedule.steps(shape, FIRST, FIRST + num_steps, last=ENDLESS)


class ServedCosts:
    """What the tasks of steps cost that carry what they did; weights for the one after them cost as for the last."""

    def __init__(self, setup: StreamSetup, served: Sequence[ServedStep]) -> None:
        self._steps = [WorkCosts(setup.sizes(one.composition)) for one in served]
        self.capacities = self._steps[0].model.capacities
        self.hand_over_ns = self._steps[0].model.hand_over_ns

    def __call__(self, task: Task) -> Cost:
        return self._steps[min(task.step - FIRST, len(self._steps) - 1)](task)


Consecutive = tuple[int, list[list[Task]]]
"""Steps that follow each other without anybody being waited for, and when the first of them could begin."""


def stretches(tasks: Iterable[list[Task]], served: Sequence[ServedStep]) -> list[Consecutive]:
    """The tasks of steps, taken apart where nobody was there."""
    found: list[Consecutive] = []
    for own, step in zip(tasks, served, strict=True):
        if step.waited_ns or not found:
            found.append((step.begun_ns, []))
        found[-1][1].append(own)
    return found


def simulate_stretches(
    stretches: Iterable[Consecutive],
    cost: Callable[[Task], Cost],
    capacities: Sequence[int] = (),
    hand_over_ns: int = 0,
) -> list[Executed]:
    """Tasks with such costs. Who was waited for comes when it did, or finds lanes still at work."""
    whole: list[Executed] = []
    now_ns = 0
    for begun_ns, steps in stretches:
        ran: list[Executed] = []
        Simulation(steps, cost, capacities, on_task=ran.append, hand_over_ns=hand_over_ns).run()
        start_ns = max(now_ns, begun_ns)
        whole += [one._replace(start_ns=one.start_ns + start_ns, end_ns=one.end_ns + start_ns) for one in ran]
        now_ns = max((one.end_ns for one in whole), default=now_ns)
    return whole
