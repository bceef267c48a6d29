"""A stream's trace: beside the tasks, which requests there were and what each step carried, as of a simulated one."""

from collections.abc import Sequence
from dataclasses import replace

from engine.generation.streaming.cohorts import FIRST
from engine.generation.streaming.wanted import Wanted
from engine.lanes import Ran
from sim.admission import AdmissionRules, StreamedRequest
from sim.schedule import Op
from sim.simulation import NOT_YET, ServedRequest, ServedStep, StreamRecord
from traces.trace import Span, Trace


def in_steps(ran: Sequence[Ran], steps: Sequence[ServedStep]) -> list[Ran]:
    """What ran of these steps. Lanes may have gone on to the next one, of which nobody was there any more."""
    last = max((step.composition.step for step in steps), default=-1) + FIRST
    return [one for one in ran if one.task.step <= last]


def with_record(
    trace: Trace,
    rules: AdmissionRules,
    requests: Sequence[Wanted],
    steps: Sequence[ServedStep],
    begun_ns: int,
    zero_ns: int,
) -> Trace:
    """The trace with what is known of its stream, which began so long by the host's clock, and the trace at `zero_ns`.

    The last head of a step ends when the next step has begun. That somebody had to be waited for is no work.
    """
    entered = {id_ for step in steps for id_ in step.composition.entered}
    known = [one for one in requests if one.tokens or one.number in entered or not one.error]
    record = StreamRecord(
        rules,
        tuple(_served(one, begun_ns, zero_ns) for one in known),
        tuple(replace(one, begun_ns=max(0, begun_ns + one.begun_ns - zero_ns)) for one in steps),
    )
    counters = [*trace.counters, *(one.counter(rules) for one in record.steps)]
    return Trace({**trace.metadata, **record.to_metadata()}, _without_waits(trace.spans, steps), counters)


def _served(one: Wanted, begun_ns: int, zero_ns: int) -> ServedRequest:
    arrival_ns = max(0, begun_ns + one.arrival_ns - zero_ns)
    request = StreamedRequest(one.number, len(one.ids), one.most_tokens, max(1, len(one.tokens)), arrival_ns)
    first_ns, end_ns = (when - zero_ns if one.tokens else NOT_YET for when in (one.first_token_ns, one.end_ns))
    return ServedRequest(request, first_ns, end_ns, one.error)


def _without_waits(spans: Sequence[Span], steps: Sequence[ServedStep]) -> list[Span]:
    last: dict[int, Span] = {}
    for span in spans:
        if span.op == Op.HEAD and (span.step not in last or span.end_ns > last[span.step].end_ns):
            last[span.step] = span
    shorter = {
        before.id: max(before.start_ns, before.end_ns - step.waited_ns)
        for step in steps
        if step.waited_ns and (before := last.get(step.composition.step - 1 + FIRST))
    }
    return [span._replace(end_ns=shorter.get(span.id, span.end_ns)) for span in spans]
