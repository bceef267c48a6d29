"""How long after a task's end another lane notices it: from the same short runs as everything else."""

from collections.abc import Sequence
from dataclasses import replace

from engine.calibration.measure import Measured, MeasuredRun
from sim.problem import Hardware, Model
from sim.simulation import start_delays


def hand_overs_s(model: Model, run: MeasuredRun) -> list[float]:
    """Seconds between lanes in one run: each task that waited for another lane last.

    `model` is as it was run, with its first layers only.
    """
    tasks = [task for step in run.condition.steps(model) for task in step]
    delays_ns = start_delays(tasks, {span.key: span for span in run.spans})
    return [delay / 1e9 for (before, after), found in delays_ns.items() if before != after for delay in found]


def with_hand_over(hardware: Hardware, model: Model, runs: Sequence[MeasuredRun]) -> Hardware:
    """The machine with the median over the runs that keep several lanes busy."""
    found = [seconds for run in runs if not run.condition.alone for seconds in hand_overs_s(model, run)]
    if not found:
        return hardware
    measured = Measured.of(found, "from a task's end to the start of what waited for it on another lane")
    return replace(hardware, hand_over_s=measured.quantity("us", 1e-6))
