"""Published runs made ready to be predicted twice: with what is known of their machine, and with nothing fitted to it.

A row that a fit has seen says nothing of how well fitted numbers predict: it counts only where they are left out.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from sim.cost import Setup
from sim.problem import Hardware
from traces.errors import InputError
from validation import published
from validation.spreads.unmeasured import kin_of, unmeasured

MEASURES = {
    published.Metric.PREFILL: "prefill_tokens_per_s",
    published.Metric.DECODE: "seconds_per_token",
    published.Metric.TOKEN: "seconds_per_token",
    published.Metric.THROUGHPUT: "throughput_tokens_per_s",
}
"""What of a prediction, and of its band, each metric measures."""


@dataclass(frozen=True, slots=True)
class PublishedRun:
    """One published run on its machine, of which something was measured."""

    name: str
    machine: str
    kin: str
    """The file that its machine goes back to."""
    is_fitted: bool
    """Whether the machine has the numbers that were fitted to other runs on it."""
    setup: Setup
    measure: str
    measured: float


def published_runs() -> Iterator[PublishedRun]:
    """All rows, each once or twice; those that no setup can be made of are left out."""
    for is_fitted, machine in ((True, Hardware.load), (False, unmeasured)):
        yield from _throughputs(machine, is_fitted=is_fitted)
        yield from _rates(machine, is_fitted=is_fitted)


def _throughputs(load: Callable[[str], Hardware], *, is_fitted: bool) -> Iterator[PublishedRun]:
    rows = published.read_rows(published.THROUGHPUT)
    fitted_to = {id(row) for case in published.CASES for row in published.usable(rows, case)}
    for row in rows:
        if row.tokens_per_s and not (is_fitted and id(row) in fitted_to):
            machine = published.machine_of(row)
            setup = published.pose(row, load(machine)).setup
            yield PublishedRun(
                str(row), machine, kin_of(machine), is_fitted, setup, "throughput_tokens_per_s", row.tokens_per_s
            )


def _rates(load: Callable[[str], Hardware], *, is_fitted: bool) -> Iterator[PublishedRun]:
    for row in published.read_latency_rows(published.LATENCY)[0]:
        if row.value and not (is_fitted and row.name in published.FITTED_ROWS):
            with suppress(InputError):  # a model that is none of ours
                machine = published.machine_of_row(row)
                posed = published.pose_rate(row, load(machine))
                requests = posed.setup.batch.num_requests
                measured = requests / row.value if posed.metric is published.Metric.DECODE else row.value
                measure = MEASURES[posed.metric]
                yield PublishedRun(row.name, machine, kin_of(machine), is_fitted, posed.setup, measure, measured)
