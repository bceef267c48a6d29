"""What `compare --requests` tells: tokens a second, what requests waited, what lanes did and could do, and why."""

from collections.abc import Iterator, Sequence
from typing import Any

from sim.admission import Prompts
from sim.comparison.report import basis_of, schedules_by
from sim.comparison.streams.served import Served, ServedComparison
from sim.planning import PROMPTS_IN_WORDS, headline, in_short, seconds
from sim.simulation import Quantiles, StreamResult
from traces.cli import TEXT, WORDS, Columns, Report

KEYS: Columns = {"schedule": TEXT, "prompts": TEXT}
LATENCIES = ("TTFT", "TPOT", "E2E")

Row = tuple[Served, StreamResult]


def print_served(found: ServedComparison, baseline: str | None) -> None:
    """Print the whole report. What others are compared with is the baseline batch after batch."""
    out, hardware = Report(), found.problem.hardware
    out.say(f"{headline(found.problem)} {_coming(found)}")
    rows = [(one, one.result) for one in found if one.result is not None]
    rates = [result.throughput_tokens_per_s for _, result in rows]
    against = {"× slowest": min(rates, default=0.0)}
    of_baseline = [result.throughput_tokens_per_s for one, result in rows if one.schedule == baseline]
    if of_baseline:
        against[f"× {baseline}"] = of_baseline[0]
    core = {**KEYS, "policy": WORDS, "tokens/s": ",.2f", "steady": ",.2f", **dict.fromkeys(against, ">")}
    more = {"chunk": ">", "places": ".0%"} | ({"J/token": ",.2f"} if hardware.power else {})
    more |= {"goodput": ",.3g"} if found.service.has_limits else {}
    out.table([core, more], (_rates(*row, [*against.values()], len(more)) for row in rows), keys=2)
    latencies = [dict.fromkeys((f"{name} {of}" for of in Quantiles._fields), ">") for name in LATENCIES]
    out.table([KEYS, *latencies], (_latencies(*row) for row in rows), "of the requests", keys=2)
    lanes = list(dict.fromkeys(name for _, result in rows for name in result.lanes if ":" not in name))
    busy = ((*_key(one), *(_lane(result, name) for name in lanes)) for one, result in rows)
    out.table({**KEYS, **dict.fromkeys(lanes, ">")}, busy, "busy · tokens/s if it never waited", keys=2)
    out.say(*_notes(found), *_not_served(found), _why(rows), basis_of(hardware))


def _coming(found: ServedComparison) -> str:
    """How many requests come, how long they are, and when."""
    stream = found.stream
    count, last_ns = len(stream.requests), stream.requests[-1].arrival_ns
    mean = stream.generated_tokens / count
    when = f"over {seconds(last_ns / 1e9)}" if last_ns else "at once"
    ends = "" if mean == found.problem.workload.gen_len else f" and end after {mean:,.0f} tokens on average"
    return f"{count:,} requests come {when}{ends}."


def _key(one: Served) -> tuple[str, str]:
    return one.schedule, one.prompts.value


def _rates(one: Served, result: StreamResult, against: Sequence[float], num_more: int) -> tuple[Any, ...]:
    speed = result.throughput_tokens_per_s
    rates = speed, result.steady_tokens_per_s, *(f"{speed / other:.2f}×" for other in against)
    drawn = (result.drawn.j_per_token,) if result.drawn else ()
    more = _chunk(one), result.occupancy, *drawn, one.goodput_requests_per_s
    return *_key(one), _policy(one), *rates, *more[:num_more]


def _chunk(one: Served) -> str:
    """Tokens of prompts that a step takes, in how many micro-batches if that is not one."""
    chunk, count = one.service.prefill_chunk, one.service.num_prompts or 1
    if one.prompts is Prompts.BEFORE or chunk is None:
        return ""
    return f"{chunk:,}" if count == 1 else f"{count} × {chunk:,}"


def _policy(one: Served) -> str:
    return in_short(one.setup.policy) if one.setup else ""


def _latencies(one: Served, result: StreamResult) -> tuple[str, ...]:
    found = result.first_token_s, result.token_s, result.whole_s
    return *_key(one), *(seconds(value) for quantiles in found for value in quantiles)


def _lane(result: StreamResult, name: str) -> str:
    if name not in result.lanes:
        return "–"
    most = result.at_most_tokens_per_s.get(name)
    return f"{result.lanes[name].utilisation:.0%}" + (f" · {most:,.1f}" if most else "")


def _notes(found: ServedComparison) -> Iterator[str]:
    said = ((one.schedule, note) for one in found for note in filter(None, one.note.split("; ")))
    for note, which in schedules_by(said):
        yield f"{', '.join(which)}: {note}"


def _not_served(found: ServedComparison) -> Iterator[str]:
    """Why there is nothing to show, once for all of which it is true."""
    failed = ((f"{one.schedule}, {PROMPTS_IN_WORDS[one.prompts]}", one.reason) for one in found if one.result is None)
    for reason, which in schedules_by(failed):
        yield f"{'; '.join(which)}: cannot be: {reason}"


def _why(rows: Sequence[Row]) -> str:
    """What is fastest, and what binds it."""
    best, *others = sorted(rows, key=lambda row: -row[1].throughput_tokens_per_s)
    text = f"[bold]{_named(best)}[/bold], is fastest with {_speed(best)}: {_bound(best)}"
    for other in others[:1]:
        text += f"; {_named(other)}, comes next with {_speed(other)}: {_bound(other)}"
    return f"{text}."


def _named(row: Row) -> str:
    return f"{row[0].schedule}, {PROMPTS_IN_WORDS[row[0].prompts]}"


def _speed(row: Row) -> str:
    return f"{row[1].throughput_tokens_per_s:,.2f} tokens/s"


def _bound(row: Row) -> str:
    """The lane that decides, and how much of the time it works."""
    lane = row[1].bottleneck
    share = min(1.0, row[1].lanes[lane].utilisation)
    return f"its busiest lane, {lane}, works {share:.0%} of the time"
