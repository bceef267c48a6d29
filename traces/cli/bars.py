"""How far a long command is, on standard error: a bar on a terminal, and elsewhere a line now and then, or nothing."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress, TaskID

EVERY_S = 30.0
"""Seconds between two lines where standard error is no terminal."""

REFRESHES_PER_S = 4
"""Of a bar: few, because what is measured meanwhile shares the cores with it."""


class Progress:
    """How far a command is; this one tells nobody."""

    def __init__(self, doing: str, total: int | None, done: int, unit: str) -> None:
        self.doing, self.total, self.done, self.unit = doing, total, done, unit

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
        self._tell()

    def _tell(self) -> None:
        pass


class _Lines(Progress):
    """Tells a file or a pipe."""

    def __init__(self, doing: str, total: int | None, done: int, unit: str) -> None:
        super().__init__(doing, total, done, unit)
        self._started = self._told = time.monotonic()

    def _tell(self) -> None:
        now = time.monotonic()
        if now - self._told >= EVERY_S:
            self._told = now
            of = "" if self.total is None else f" of {self.total:,}"
            sys.stderr.write(f"{self.doing}: {self.done:,}{of} {self.unit} after {now - self._started:,.0f} s\n")
            sys.stderr.flush()


class _Bar(Progress):
    """Tells a terminal."""

    def __init__(self, bar: "RichProgress", doing: str, total: int | None, done: int, unit: str) -> None:
        super().__init__(doing, total, done, unit)
        self._bar = bar
        self._task: TaskID = bar.add_task(doing, total=total, amount="")
        self._tell()

    def _tell(self) -> None:
        amount = "" if self.total is None else f"{self.done:,}/{self.total:,} {self.unit}"
        self._bar.update(self._task, completed=self.done, total=self.total, description=self.doing, amount=amount)


@contextmanager
def progress(
    doing: str, total: int | None = None, *, done: int = 0, unit: str = "", lines: bool = False
) -> Iterator[Progress]:
    """Show how far a command is while it works; `lines`: say so every half a minute where there is no terminal."""
    if not sys.stderr.isatty():
        yield (_Lines if lines else Progress)(doing, total, done, unit)
        return
    from rich import progress as rich
    from rich.console import Console

    columns = (
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.TextColumn("{task.fields[amount]}"),
        rich.TimeElapsedColumn(),
        *(() if total is None else (rich.TimeRemainingColumn(),)),
    )
    err = Console(stderr=True)
    with rich.Progress(*columns, console=err, refresh_per_second=REFRESHES_PER_S, transient=True) as bar:
        yield _Bar(bar, doing, total, done, unit)
