"""From the tasks that ran to a trace and to the numbers that people ask for."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from engine.lanes import Ran
from sim.schedule import Lane, Op
from traces.analysis import DEPENDENCY, cause_of
from traces.trace import MEMORY, NONE, Counter, Span, Trace

History = Sequence[tuple[int, int]]
"""(host clock in ns, bytes) after each change of what a memory holds."""


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


def make_trace(ran: Sequence[Ran], metadata: dict[str, Any], memory: Mapping[str, History] | None = None) -> Trace:
    """The trace of one batch: the tasks' own keys, in order of time, from 0 ns, and what each tier held.

    `memory` has the histories of the tiers `device`, `pinned` and `host`, the last without what is pinned.
    """
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
        where = (task.lane.kind.value, task.lane.rank, task.step, task.layer, task.micro_batch, task.page)
        first, last = (time - start_ns for time in times[task.id])
        waited_for = "" if cause in (previous, NONE) else DEPENDENCY
        span = Span(
            task.id, task.op.value, *where, first, last, bytes=one.num_bytes, waited_for=waited_for, cause=cause
        )
        spans.append(span)
    return Trace(metadata, spans, _memory(memory or {}, start_ns))


def _memory(histories: Mapping[str, History], start_ns: int) -> list[Counter]:
    """Samples of each tier from the first span on; pinned memory is part of the host's, as in the memory plan."""
    changes = sorted((ns, tier, num_bytes) for tier, history in histories.items() for ns, num_bytes in history)
    held = dict.fromkeys(histories, 0)
    samples: dict[tuple[int, int], dict[str, float]] = {}
    for ns, tier, num_bytes in changes:
        held[tier] = num_bytes
        time_ns = max(0, ns - start_ns)
        if tier == "device":
            samples[time_ns, 0] = {"device": held["device"]}
        else:
            samples[time_ns, NONE] = {"host": held["host"] + held["pinned"], "pinned": held["pinned"]}
    return [Counter(MEMORY, time_ns, values, rank) for (time_ns, rank), values in samples.items()]


def peak_bytes(traces: Sequence[Trace]) -> dict[str, int]:
    """The most that each tier held in any of the traces."""
    peaks: dict[str, int] = {}
    for counter in (counter for trace in traces for counter in trace.counters if counter.name == MEMORY):
        for tier, value in counter.values.items():
            peaks[tier] = max(peaks.get(tier, 0), round(value))
    return peaks


def phases_s(trace: Trace) -> tuple[float, float]:
    """Seconds until the first token of every micro-batch is there, and seconds after that."""
    heads = [span.end_ns for span in trace.spans if span.step == 0 and span.op == Op.HEAD]
    turn = max(heads, default=trace.end_ns)
    return (turn - trace.start_ns) / 1e9, (trace.end_ns - turn) / 1e9
