"""What `prove-red` tells a person, and a program."""

import json
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from tests.mutants.mutants import Mutant
from tests.mutants.run import Trial, Verdict
from traces.cli import console


def print_list(mutants: Sequence[Mutant]) -> None:
    """All mutants and what they break."""
    table = _table("mutant", "file", "what it breaks")
    for mutant in mutants:
        table.add_row(mutant.name, mutant.file, mutant.breaks)
    console().print(table)


def print_outcomes(outcomes: Sequence[Trial], total: int, wall_s: float) -> None:
    """What became of each mutant, those that no test noticed last, and the sum of it."""
    out = console()
    table = _table("mutant", "verdict", "noticed first by")
    table.add_column("s", justify="right", no_wrap=True)
    for one in sorted(outcomes, key=lambda one: not one.killed):
        verdict = str(one.verdict) if one.killed else f"[bold]{one.verdict}[/bold]"
        table.add_row(one.mutant.name, verdict, _short(one.by), f"{one.seconds:.1f}")
    out.print(table)
    for one in outcomes:
        if not one.killed:
            tests = ", ".join(one.mutant.tests)
            out.print(f"[bold]{one.mutant.name}[/bold] {one.verdict}: {one.mutant.breaks}. Tried: {tests}")
        if one.verdict is Verdict.UNCLEAR:
            out.print(one.output, markup=False, highlight=False)
    out.print(f"{_summary(outcomes, total)} in {wall_s:.0f} s")


def as_json(outcomes: Sequence[Trial], total: int, wall_s: float) -> str:
    """The same for a program."""
    rows = [
        {
            "name": one.mutant.name,
            "file": one.mutant.file,
            "breaks": one.mutant.breaks,
            "verdict": one.verdict.value,
            "killed": one.killed,
            "by": one.by,
            "seconds": one.seconds,
        }
        for one in outcomes
    ]
    killed = sum(one.killed for one in outcomes)
    whole = {"mutants": total, "tried": len(outcomes), "killed": killed, "wall_s": wall_s, "outcomes": rows}
    return json.dumps(whole, indent=1) + "\n"


def _summary(outcomes: Sequence[Trial], total: int) -> str:
    """How many were killed, and what is to say of the others."""
    killed = sum(one.killed for one in outcomes)
    late = sum(one.verdict is Verdict.TIMED_OUT for one in outcomes)
    parts = [f"{killed} of {total} mutants killed"]
    if late:
        parts.append(f"{late} of them by the time limit")
    if len(outcomes) < total:
        parts.append(f"{total - len(outcomes)} not tried")
    survivors = len(outcomes) - killed
    if survivors:
        parts.append(f"[bold]{survivors} not noticed: tests are missing[/bold]")
    return ", ".join(parts)


def _short(test: str) -> str:
    """A node id without the folder and the parameters."""
    return test.removeprefix("tests/").partition("[")[0].replace(".py::", " ").replace("::", " ")


def _table(*headings: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(headings[0], no_wrap=True)
    for heading in headings[1:]:
        table.add_column(heading, overflow="fold")
    return table
