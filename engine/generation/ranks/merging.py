"""What the ranks of a run leave, put together: one trace on one clock, and one account.

Processes of one host read the same clock (`time.perf_counter_ns`, the host's monotonic one), so that a time of one is
that time of all. Tasks have the same number in every rank.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby

from engine.generation.trace import BEGAN_NS, Stats
from sim.schedule import LaneKind, Op
from traces.trace import MEMORY, NONE, Counter, Span, Trace


def merged_trace(traces: Sequence[Trace]) -> Trace:
    """The ranks' traces in one, from the first task of any of them on.

    All have the sums of all: such a task began when the last rank had come to it and ended when the first had its sum;
    what others take longer is the delay of what follows there.
    """
    began_ns = [trace.metadata[BEGAN_NS] for trace in traces]
    first_ns = min(began_ns)
    later_ns = [ns - first_ns for ns in began_ns]
    spans: dict[int, Span] = {}
    for trace, shift_ns in zip(traces, later_ns, strict=True):
        for span in trace.spans:
            moved = span._replace(start_ns=span.start_ns + shift_ns, end_ns=span.end_ns + shift_ns)
            spans[span.id] = _met(spans[span.id], moved) if span.id in spans else moved
    metadata = {**traces[0].metadata, BEGAN_NS: first_ns}
    metadata.pop("rank")
    if shifted := [trace.metadata["clock_shift_ns"] for trace in traces if "clock_shift_ns" in trace.metadata]:
        metadata["clock_shift_ns"] = max(shifted)
    return Trace(metadata, _in_turn([spans[id_] for id_ in sorted(spans)]), _merged_counters(traces, later_ns))


def _met(one: Span, other: Span) -> Span:
    """A task that all ranks do together, as two of them saw it."""
    if one.op != Op.ALL_REDUCE:
        raise RuntimeError(f"ranks {one.rank} and {other.rank} have both done task {one.id}, {one.op}")
    last = max((one, other), key=lambda span: span.start_ns)
    end_ns = max(last.start_ns, min(one.end_ns, other.end_ns))
    return last._replace(rank=0, start_ns=last.start_ns, end_ns=end_ns)


def _in_turn(spans: list[Span]) -> list[Span]:
    """The same, of which sums that all do together begin when the one before has ended: clocks of devices err."""
    ended_ns = 0
    for i, span in enumerate(spans):
        if span.op == Op.ALL_REDUCE:
            start_ns = max(span.start_ns, ended_ns)
            ended_ns = max(span.end_ns, start_ns)
            spans[i] = span._replace(start_ns=start_ns, end_ns=ended_ns)
    return spans


def _merged_counters(traces: Sequence[Trace], later_ns: Sequence[int]) -> list[Counter]:
    """Each device's own as they are; of the host's memory, the sum of what the ranks hold at a time."""
    moved = [
        (rank, counter._replace(time_ns=counter.time_ns + later_ns[rank]))
        for rank, trace in enumerate(traces)
        for counter in trace.counters
    ]
    of_host = [(rank, one) for rank, one in moved if one.rank == NONE and one.name == MEMORY]
    others = [one._replace(rank=rank) for rank, one in moved if one.rank != NONE]
    beside = [one for rank, one in moved if one.rank == NONE and one.name != MEMORY and rank == 0]
    return [*others, *_summed(of_host), *beside]


def _summed(of_host: Sequence[tuple[int, Counter]]) -> Iterator[Counter]:
    held: dict[int, dict[str, float]] = {}
    for time_ns, changes in groupby(sorted(of_host, key=_time_ns), key=_time_ns):
        for rank, counter in changes:
            held[rank] = dict(counter.values)
        tiers = dict.fromkeys(tier for values in held.values() for tier in values)
        yield Counter(MEMORY, time_ns, {tier: sum(one.get(tier, 0) for one in held.values()) for tier in tiers}, NONE)


def _time_ns(one: tuple[int, Counter]) -> int:
    return one[1].time_ns


def merged_stats(ranks: Sequence[Stats]) -> Stats:
    """The account of all ranks: each ends when the last does, and the host holds what all of them hold.

    Lanes and device memory of a rank behind the first have its number (`GPU:1`, `device:1`). Of the lane that all have
    together it is the shortest time: the others wait in it.
    """
    peaks, busy_s = dict[str, int](), dict[str, float]()
    for index, stats in enumerate(ranks):
        for tier, peak in stats.peak_bytes.items():
            name = f"{tier}:{index}" if index and tier == "device" else tier
            peaks[name] = peaks.get(name, 0) + peak
        own = {lane: seconds for lane, seconds in stats.busy_s.items() if lane != LaneKind.NET}
        busy_s |= {f"{lane}:{index}" if index else lane: seconds for lane, seconds in own.items()}
    busy_s |= {LaneKind.NET.value: min(stats.busy_s.get(LaneKind.NET, 0.0) for stats in ranks)}
    longest = max(ranks, key=lambda stats: stats.prefill_s + stats.decode_s)
    return replace(
        ranks[0],
        prefill_s=longest.prefill_s,
        decode_s=longest.decode_s,
        busy_s=busy_s,
        peak_bytes=peaks,
        kernel_attention_calls=sum(stats.kernel_attention_calls for stats in ranks),
        own_attention_calls=sum(stats.own_attention_calls for stats in ranks),
    )
