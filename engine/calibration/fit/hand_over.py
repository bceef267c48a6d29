"""How long after a task's end another lane notices it: from the same short runs as everything else."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from engine.calibration.measure import Condition, Measured
from sim.problem import Hardware, Model
from sim.simulation import start_delays
from traces.trace import Span


def hand_overs_s(model: Model, condition: Condition, spans: Iterable[Span]) -> list[float]:
    """Seconds between lanes in one run of a condition: each task that waited for another lane last.

    `model` is as it was run, with its first layers only.
    """
    steps = condition.schedule.steps(condition.shape(model), 0, condition.batch.gen_len)
    tasks = [task for step in steps for task in step]
    delays = start_delays(tasks, {span.key: span for span in spans})
    return [one / 1e9 for (before, after), found in delays.items() if before != after for one in found]


def with_hand_over(
    hardware: Hardware, model: Model, planned: Sequence[Condition], runs: Sequence[Sequence[Sequence[Span]]]
) -> Hardware:
    """The machine with the median over the runs that keep several lanes busy. `runs[i][at]`: round i, condition at."""
    found = [
        seconds
        for one in runs
        for condition, spans in zip(planned, one, strict=True)
        if not condition.alone
        for seconds in hand_overs_s(model, condition, spans)
    ]
    if not found:
        return hardware
    measured = Measured.of(found, "from a task's end to the start of what waited for it on another lane")
    return replace(hardware, hand_over_s=measured.quantity("us", 1e-6))
