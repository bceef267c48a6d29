"""What `plan --requests` tells: where prompts are computed best, with which policy, and why."""

from collections.abc import Iterator
from typing import Any

from sim.admission import Prompts
from sim.planning.report import headline, in_short, say_where_bytes_are
from sim.planning.streams.choice import StreamChoice, Way
from traces.cli import TEXT, WORDS, Report

PROMPTS_IN_WORDS = {Prompts.BEFORE: "batch after batch", Prompts.BESIDE: "prompts beside decode"}
"""What is done, in words."""


def print_stream_plan(choice: StreamChoice, top: int, wall_s: float) -> None:
    """Print the best way for the requests at hand, the best ones, where the bytes are, and why."""
    out, best = Report(), choice.best
    out.say(headline(choice.problem))
    count, how = len(choice.stream.requests), PROMPTS_IN_WORDS[best.prompts]
    rate = f"[bold]{best.throughput_tokens_per_s:,.2f} tokens/s[/bold]{_of_rival(choice)}"
    chunks = f", {_chunk(best)} tokens of prompts a step" if _chunk(best) else ""
    with_ = f"{best.schedule} with {in_short(best.policy)}{chunks}"
    out.say(f"Best for {count:,} requests: [bold]{how}[/bold], {with_}: {rate}.")
    out.say(f"{choice.considered:,} policies for prompts beside decode looked at in {wall_s:.1f} s.")
    keys = {"schedule": TEXT, "prompts": TEXT}
    rates = {"tokens/s": ",.2f", "steady": ",.2f"}
    columns = [{**keys, "policy": WORDS, **rates}, {"chunk": ">", "busiest": ">"}]
    out.table(columns, map(_row, choice.ways[:top]), f"for {count:,} requests", keys=2)
    say_where_bytes_are(out, best.memory)
    out.say(*_why(choice))


def _chunk(way: Way) -> str:
    """Tokens of prompts that a step takes, in how many micro-batches if that is not one."""
    if way.prefill_chunk is None:
        return ""
    return f"{way.prefill_chunk:,}" if way.num_prompts == 1 else f"{way.num_prompts} × {way.prefill_chunk:,}"


def _of_rival(choice: StreamChoice) -> str:
    rival, gain = choice.rival, choice.gain
    if rival is None or gain is None:
        return ""
    rate = f"{rival.throughput_tokens_per_s:,.2f}"
    return (
        f", {gain:.2f} × of {PROMPTS_IN_WORDS[rival.prompts]} ({rival.schedule} with {in_short(rival.policy)}: {rate})"
    )


def _row(way: Way) -> tuple[Any, ...]:
    rates = (way.throughput_tokens_per_s, way.steady_tokens_per_s)
    return way.schedule, way.prompts.value, in_short(way.policy), *rates, _chunk(way), _busiest(way)


def _busiest(way: Way) -> str:
    """The lane that decides, and how fast it would be if it never waited."""
    return f"{way.bottleneck} · {way.at_most_tokens_per_s[way.bottleneck]:,.1f}"


def _why(choice: StreamChoice) -> Iterator[str]:
    best, rival = choice.best, choice.rival
    if rival is not None:
        both = "; ".join(f"{PROMPTS_IN_WORDS[one.prompts]}, {_bound(one)}" for one in (best, rival))
        yield f"Why: {both}."
        if best.prompts is Prompts.BEFORE and (rival.steady_tokens_per_s or 0.0) > best.throughput_tokens_per_s:
            yield (
                f"Without end prompts beside decode would give {rival.steady_tokens_per_s:,.2f} tokens/s: here most of "
                f"the time is spent until requests end as others begin, and behind the last one to enter."
            )
    if any(one.result is None for one in choice.ways):
        yield "What is not within 2 % of the best estimate is estimated from a few steps, not simulated to its end."
    for reason in dict.fromkeys(choice.failed.values()):
        which = ", ".join(name for name, why in choice.failed.items() if why == reason)
        yield f"{which}: {reason}"


def _bound(way: Way) -> str:
    most = way.at_most_tokens_per_s[way.bottleneck]
    return f"its busiest lane, {way.bottleneck}, works {way.throughput_tokens_per_s / most:.0%} of the time"
