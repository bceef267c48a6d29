"""From the tasks that ran to a trace and to the numbers that people ask for."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from engine.executor import Ran
from sim.schedule.task import Lane, Op
from traces.causes import DEPENDENCY, cause_of
from traces.trace import NONE, Span, Trace


@dataclass(frozen=True, slots=True)
class Stats:
    """What a run did. Seconds are sums over its batches; peaks are of the whole run, by tier.

    `busy_s` is how long each lane worked. `tokens_per_s` counts generated tokens over prefill and decode.
    """

    generated_tokens: int
    prefill_s: float
    decode_s: float
    busy_s: dict[str, float]
    peak_bytes: dict[str, int]
    kernel_attention_calls: int
    own_attention_calls: int

    @property
    def tokens_per_s(self) -> float:
        seconds = self.prefill_s + self.decode_s
        return self.generated_tokens / seconds if seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON values."""
        return {**asdict(self), "tokens_per_s": self.tokens_per_s}


def make_trace(ran: Sequence[Ran], metadata: dict[str, Any]) -> Trace:
    """The trace of one batch: the tasks' own keys, in order of time, from 0 ns."""
    times = {one.task.id: (one.start.time_ns, one.end.time_ns) for one in ran}
    ends_ns = {id_: end_ns for id_, (_, end_ns) in times.items()}
    start_ns = min((start for start, _ in times.values()), default=0)
    before: dict[Lane, int] = {}
    spans = []
    for one in sorted(ran, key=lambda one: one.task.id):
        task = one.task
        previous = before.get(task.lane, NONE)
        cause = cause_of(times[task.id][0], task.deps, previous, ends_ns)
        before[task.lane] = task.id
        first, last = (time - start_ns for time in times[task.id])
        spans.append(
            Span(
                task.id,
                task.op.value,
                task.lane.kind.value,
                task.lane.rank,
                task.step,
                task.layer,
                task.micro_batch,
                task.page,
                first,
                last,
                bytes=one.num_bytes,
                waited_for="" if cause in (previous, NONE) else DEPENDENCY,
                cause=cause,
            )
        )
    return Trace(metadata, spans)


def phases_s(trace: Trace) -> tuple[float, float]:
    """Seconds until the first token of every micro-batch is there, and seconds after that."""
    heads = [span.end_ns for span in trace.spans if span.step == 0 and span.op == Op.HEAD]
    turn = max(heads, default=trace.end_ns)
    return (turn - trace.start_ns) / 1e9, (trace.end_ns - turn) / 1e9
