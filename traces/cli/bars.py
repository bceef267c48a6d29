"""How far a long command is, on standard error: a bar on a terminal, and elsewhere a line now and then, or nothing."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_EVERY_S = 30.0  # between two lines where standard error is no terminal
_REFRESHES_PER_S = 4  # few, because what is measured meanwhile shares the cores with the bar


class Progress:
    """How far a command is. `tell` is called whenever that has changed."""

    def __init__(self, doing: str, total: int | None, done: int, unit: str) -> None:
        self.doing, self.total, self.done, self.unit = doing, total, done, unit
        self.tell: Callable[[], None] = lambda: None

    def advance(self, count: int = 1) -> None:
        """So much more is done."""
        self.at(self.done + count)

    def say(self, doing: str) -> None:
        """What is done now."""
        self.at(self.done, doing=doing)

    def at(self, done: int, total: int | None = None, doing: str | None = None) -> None:
        """How much is done, of how much if that is news, and what is done now."""
        self.done = done
        self.total = self.total if total is None else total
        self.doing = self.doing if doing is None else doing
        self.tell()

    @property
    def amount(self) -> str:
        """As in '12/40 points'; nothing where it is not known how much there is to do."""
        return "" if self.total is None else f"{self.done:,}/{self.total:,} {self.unit}"


@contextmanager
def progress(
    doing: str, total: int | None = None, *, done: int = 0, unit: str = "", lines: bool = False
) -> Iterator[Progress]:
    """Show how far a command is while it works; `lines`: say so every half a minute where there is no terminal."""
    shown = Progress(doing, total, done, unit)
    if sys.stderr.isatty():
        with _bar(shown):
            yield shown
    else:
        if lines:
            shown.tell = _lines(shown)
        yield shown


def _lines(shown: Progress) -> Callable[[], None]:
    started = told = time.monotonic()

    def tell() -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= _EVERY_S:
            told = now
            sys.stderr.write(f"{shown.doing}: {shown.amount} after {now - started:,.0f} s\n")

    return tell


@contextmanager
def _bar(shown: Progress) -> Iterator[None]:
    from rich import progress as rich
    from rich.console import Console

    what, amount = rich.TextColumn("{task.description}"), rich.TextColumn("{task.fields[amount]}")
    left = [] if shown.total is None else [rich.TimeRemainingColumn()]
    columns = [what, rich.BarColumn(), amount, rich.TimeElapsedColumn(), *left]
    out, to_terminal = Console(stderr=True), sys.stdout.isatty()  # rows that go to a file must not land on it
    with rich.Progress(
        *columns, console=out, refresh_per_second=_REFRESHES_PER_S, transient=True, redirect_stdout=to_terminal
    ) as bar:
        task = bar.add_task(shown.doing, total=shown.total, completed=shown.done, amount=shown.amount)
        shown.tell = lambda: bar.update(
            task, completed=shown.done, total=shown.total, description=shown.doing, amount=shown.amount
        )
        yield
