"""Reports for a person, readable in a window of any usual width: nothing is cut, and no word is broken.

A table too wide for the window goes on below, its key repeated. Under each table stands what its abbreviations mean,
each once a report.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.align import Align
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.errors import MarkupError
from rich.table import Table
from rich.text import Text

from traces.cli.glossary import legend

TEXT = ""  # how a column of names is written: they never break
PROSE = "prose"  # how a column of sentences is written: they may go on in the next line
WORDS = "words"  # how a column of abbreviations is written: they may go on too, and are explained below
_WRAPPED = (PROSE, WORDS)
_PLAIN_WIDTH = 100  # of an output that is no terminal, where COLUMNS is not set
_LEAST_PROSE = 26  # the width that prose gets at least; with less it stands in a table of its own below
_LIKE_MARKUP = re.compile(r"(?<!\\)\[(?=[a-z#/@])(?!/?bold\])")
_GAP = 2  # spaces between columns

Form = str | Callable[[Any], str]
"""How a column is written: TEXT, PROSE, WORDS, a format of numbers (`">"`: as they are), or a function of them."""

Columns = Mapping[str, Form]
"""Headings and what stands under them, as in `{"schedule": TEXT, "tokens/s": ",.2f"}`."""


def console() -> Console:
    """Standard output, as wide as the terminal, or COLUMNS says, or else 100 columns."""
    out = Console(highlight=False)
    known = out.is_terminal or os.environ.get("COLUMNS", "").isdigit()
    return out if known else Console(width=_PLAIN_WIDTH, highlight=False)


class Report:
    """What one command tells a person, on standard output or another console."""

    def __init__(self, out: Console | None = None) -> None:
        self._out = out or console()
        self._explained: set[str] = set()
        self._below_a_table = False

    def say(self, *paragraphs: str) -> None:
        """Print paragraphs, in which [bold] is markup and nothing else; not at once below a table."""
        for text in paragraphs:
            if self._below_a_table:
                self._out.print()
            self._below_a_table = False
            self._out.print(_marked_up(text))

    def quote(self, lines: Iterable[str]) -> None:
        """Print lines as they are, to be copied: nothing is markup, and a window that is too narrow breaks none."""
        self._out.print()
        self._below_a_table = True
        for line in lines:
            self._out.print(Text(line), soft_wrap=True)

    def table(
        self, columns: Columns | Sequence[Columns], rows: Iterable[Sequence[Any]], title: str = "", keys: int = 1
    ) -> None:
        """Print rows under headings, and below what is abbreviated in them; None shows nothing.

        Where a table goes on below, its first `keys` columns are repeated; groups of columns stay together.
        """
        groups = [columns] if isinstance(columns, Mapping) else columns
        written = [how for group in groups for how in group.values()]
        cells = [[_written(*pair) for pair in zip(row, written, strict=True)] for row in rows]
        texts = iter(zip(*cells, strict=True) if cells else [()] * len(written))
        laid = [[_Column(heading, how, next(texts)) for heading, how in group.items()] for group in groups]
        self._out.print()
        self._below_a_table = True
        if title:
            self._out.print(Text(title, style="bold"))
        for number, block in enumerate(_blocks(laid, keys, self._out.width)):
            if number:
                self._out.print()
            self._out.print(_drawn(block, self._out.width))
        self._explain("\n".join((title, *(one.shown for group in laid for one in group))))

    def _explain(self, shown: str) -> None:
        for chapter, words in legend(shown).items():
            new = {word: text for word, text in words.items() if word not in self._explained}
            self._explained.update(new)
            if new:
                said = [Text.assemble((word, "bold"), f" = {text}") for word, text in new.items()]
                self._out.print(Text.assemble(f"{chapter}: ", Text("; ").join(said), ".", style="dim"))


def _marked_up(text: str) -> Text:
    """Names that users give may look like markup, and are text."""
    try:
        return Text.from_markup(_LIKE_MARKUP.sub(r"\\[", text), emoji=False)
    except MarkupError:  # a name that is [/bold]
        return Text(text)


def markdown_table(columns: Columns, rows: Iterable[Sequence[Any]]) -> list[str]:
    """The lines of a table in a Markdown document, and an empty one."""
    lines = [list(columns), ["---" if how in (TEXT, *_WRAPPED) else "---:" for how in columns.values()]]
    lines += [list(map(_written, row, columns.values())) for row in rows]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]


@dataclass(frozen=True, slots=True)
class _Column:
    heading: str
    how: Form
    cells: Sequence[str]

    @property
    def shown(self) -> str:
        """What a legend may have to explain; prose speaks for itself."""
        return "\n".join((self.heading, *(() if self.how == PROSE else self.cells)))

    @property
    def side(self) -> Literal["left", "right"]:
        return "left" if self.how in (TEXT, *_WRAPPED) else "right"

    @property
    def least(self) -> int:
        """The width in which no word breaks."""
        prose = self.how in _WRAPPED
        pieces = [*self.heading.split(), *(word for cell in self.cells for word in (cell.split() if prose else [cell]))]
        return max(*map(len, pieces), min(_LEAST_PROSE, self.full) if prose else 0)

    @property
    def full(self) -> int:
        """The width in which everything stands in one line."""
        return max(map(len, (self.heading, *self.cells)))


def _blocks(groups: Sequence[Sequence[_Column]], num_keys: int, width: int) -> Iterator[list[_Column]]:
    """The columns that stand side by side; each block begins with the keys."""
    keys, first = list(groups[0][:num_keys]), groups[0][num_keys:]
    block = list(keys)
    for group in (first, *groups[1:]):
        for number, column in enumerate(group):
            next_to_it = [column] if number else group
            if len(block) > num_keys and _room([*block, *next_to_it], width) < 0:
                yield block
                block = list(keys)
            block.append(column)
    yield block


def _room(block: Sequence[_Column], width: int) -> int:
    """What is left of the width when each column has its least."""
    return width - sum(column.least for column in block) - _GAP * (len(block) - 1)


def _drawn(block: Sequence[_Column], width: int) -> Table:
    """The table; words of prose that are longer than any room for them are all that is ever broken."""
    room = _room(block, width)
    fits = sum(column.full - column.least for column in block) <= room
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, _GAP - 1, 0, 0))
    for column in block:
        more = min(room, column.full - column.least) if fits or column.how in _WRAPPED else 0
        room -= more
        heading = Align(Text(column.heading), column.side, vertical="bottom")
        table.add_column(heading, justify=column.side, width=max(1, column.least + more), overflow="fold")
    for row in zip(*(column.cells for column in block), strict=True):
        table.add_row(*map(Text, row))
    return table


def _written(value: Any, how: Form) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return how(value) if callable(how) else str(value) if how in (TEXT, *_WRAPPED) else format(value, how)
