"""What `check` tells a person: each speed in a sentence, then all of them in a table."""

from collections.abc import Iterator
from typing import Any

from sim.comparison.check.answer import SpeedAnswer, SpeedCheck, Verdict
from sim.planning import in_short
from sim.simulation import WITHIN
from traces.cli import TEXT, WORDS, Report


def print_check(found: SpeedCheck) -> None:
    """Print the answers."""
    out, problem = Report(), found.problem
    out.say(f"[bold]{problem.model.name} on {problem.hardware.name}[/bold]: measured beside predicted.")
    for one in found.answers:
        out.say(*_told(one))
    columns = {"phase": TEXT, "schedule": TEXT, "policy": WORDS, "measured": ",.1f", "predicted": ",.1f", WITHIN: ">"}
    more = {"waits for": TEXT, "predicted share": ".0%", "measured share": ".0%", "best": ",.1f"}
    out.table([columns, more], map(_row, found.answers), "tokens/s", keys=2)


def _told(one: SpeedAnswer) -> Iterator[str]:
    measured, predicted = (f"{value:,.1f}" for value in (one.measured, one.predicted))
    use, verdict = one.use, one.verdict
    speed = one.measurement.speed.capitalize()
    text = f"[bold]{speed}: {measured} of {predicted} ({one.within}) tokens/s[/bold], {verdict}"
    if verdict is Verdict.BELOW:
        text += f"; {use.part} would be at {one.measured_share:.0%} instead of {use.share:.0%} of its peak"
    else:
        text += f"; {use.part} is at {one.measured_share:.0%} of its peak"
    yield f"{text}. Try first: {one.first}."
    for note in one.run.notes:
        yield f"{speed}: {note}."
    if verdict is Verdict.BELOW and one.better_setting:
        yield f"The plan's setting, {one.better_setting}, would make {one.best_tokens_per_s:,.1f} tokens/s."
    setup = one.prediction.setup
    for short in setup.shortages:
        yield f"It ran, though by the memory plan {short}."


def _row(one: SpeedAnswer) -> tuple[Any, ...]:
    setup, use = one.prediction.setup, one.use
    speeds = one.measured, one.predicted, str(one.within)
    what = str(one.measurement.speed), setup.schedule.name, in_short(setup.policy)
    return *what, *speeds, use.part, use.share, one.measured_share, one.best_tokens_per_s
