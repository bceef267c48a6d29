"""What a page can hold. Each section says what it shows; how that looks is the page's own business (page.js)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

FINEST = 1 / 2000
"""Of a timeline's length: bars of one kind that are closer than this are drawn as one."""


@dataclass(frozen=True, slots=True)
class Paragraphs:
    """Sentences; `code` is shown to be copied."""

    kind: ClassVar[str] = "paragraphs"
    title: str
    paragraphs: tuple[str, ...]
    code: str = ""


@dataclass(frozen=True, slots=True)
class PageColumn:
    """A heading, and how numbers under it are written: `digits` behind the point; None for text."""

    name: str
    digits: int | None = None
    meaning: str = ""


@dataclass(frozen=True, slots=True)
class SortableTable:
    """Rows that a reader can sort by any column. The row `marked` stands out."""

    kind: ClassVar[str] = "table"
    title: str
    columns: tuple[PageColumn, ...]
    rows: tuple[tuple[Any, ...], ...]
    marked: int | None = None


@dataclass(frozen=True, slots=True)
class MemoryBar:
    """One memory and what fills it."""

    name: str
    capacity_bytes: int
    parts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class MemoryBars:
    """Memories side by side, each as long as it is full."""

    kind: ClassVar[str] = "memory"
    title: str
    bars: tuple[MemoryBar, ...]
    colours: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class TimelineBars:
    """What lanes did: per lane, bars as (op, begin, length) in milliseconds."""

    name: str
    note: str
    length_ms: float
    lanes: Mapping[str, Sequence[tuple[str, float, float]]]


@dataclass(frozen=True, slots=True)
class Timelines:
    """Timelines under each other, on one axis of time or each on its own."""

    kind: ClassVar[str] = "timelines"
    title: str
    timelines: tuple[TimelineBars, ...]
    colours: Mapping[str, str]
    meanings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SliderAxis:
    """What a slider changes: its computed values in order, and the one it begins at."""

    name: str
    unit: str
    values: tuple[float, ...]
    at: int


@dataclass(frozen=True, slots=True)
class SliderMeasure:
    """What sliders tell: a number, or a name."""

    name: str
    unit: str = ""
    digits: int | None = None


@dataclass(frozen=True, slots=True)
class Sliders:
    """Answers computed beforehand for every combination of values: `points` in the order of the axes, the last fastest.

    A point is None where there is no answer. Between points the page interpolates numbers, and says so.
    """

    kind: ClassVar[str] = "sliders"
    title: str
    axes: tuple[SliderAxis, ...]
    measures: tuple[SliderMeasure, ...]
    points: tuple[tuple[Any, ...] | None, ...]
    nothing: str
    """What is said where there is no answer."""
    note: str = ""


Section = Paragraphs | SortableTable | MemoryBars | Timelines | Sliders


def merged(bars: Iterable[tuple[str, float, float]], length: float) -> list[tuple[str, float, float]]:
    """The same bars with those of one op drawn as one where no eye sees the gap between them."""
    finest, found = length * FINEST, list[tuple[str, float, float]]()
    for op, begin, long in sorted(bars, key=lambda one: one[1]):
        if found and found[-1][0] == op and begin - (found[-1][1] + found[-1][2]) < finest:
            found[-1] = (op, found[-1][1], max(found[-1][2], begin + long - found[-1][1]))
        else:
            found.append((op, begin, long))
    return found
