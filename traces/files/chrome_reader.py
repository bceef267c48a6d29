"""Reads trace files that `chrome_writer` wrote, piece by piece: a million spans fit in memory, their JSON does not."""

import gc
import gzip
import os
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any, TextIO

from traces.errors import InputError
from traces.files.json_stream import DamagedJsonError, members
from traces.trace import HOST_LANES, NONE, Counter, LaneId, Span, Trace

SCHEMA = 1
"""The version of our part of the file. A reader refuses any other."""

SECTION = "cgopipe"
"""The top-level member that holds our metadata, and tells our files from others'."""


def read_chrome(path: str | os.PathLike[str]) -> Trace:
    """Read a trace that `traces.files.chrome_writer.write` wrote, compressed or not.

    Raises InputError, naming the file and what is wrong with it, if it is missing, damaged, not ours or of another
    schema.
    """
    with opened(path) as text, _no_collection():
        return _Reader().read(text)


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[TextIO]:
    """The text of a trace file, unpacked; whatever shows to be wrong with it becomes an InputError that names it."""
    source = Path(path)
    try:
        with _unpacked(source) as text:
            yield text
        return
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        problem = f"it is a damaged gzip file: {error}"
    except UnicodeDecodeError:
        problem = "it is not text, so no trace"
    except DamagedJsonError as error:
        problem = f"it is damaged, or not JSON: {error}"
    except InputError as error:
        problem = str(error)
    except OSError as error:
        problem = f"it cannot be read: {error.strerror or error}"
    raise InputError(f"{source}: {problem}")


def _unpacked(path: Path) -> TextIO:
    with path.open("rb") as start:
        packed = start.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rt", encoding="utf-8") if packed else path.open(encoding="utf-8")


@contextmanager
def _no_collection() -> Iterator[None]:
    """Collecting garbage would go over the growing list again and again, for a third of the time, and find none."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


_ARGS = ("id", "op", "step", "layer", "micro_batch", "page", "bytes", "flops", "bound", "waited_for", "cause")
_ARG_TYPES = tuple(str if name in ("op", "bound", "waited_for") else int for name in _ARGS)
_arg_values: Callable[[Any], tuple[Any, ...]] = itemgetter(*_ARGS)

_PLAIN = r'[^"\\\x00-\x1f]*'  # a string without escapes
_PATTERN = {str: f'"({_PLAIN})"', int: r"(-?\d+)"}
_SPAN_LINE = re.compile(
    rf'^{{"ph":"X","cat":"\w+","pid":(\d+),"tid":(\d+),"name":"{_PLAIN}",'
    r'"ts":(\d+)\.(\d{3}),"dur":(\d+)\.(\d{3}),"args":{'
    + ",".join(f'"{name}":{_PATTERN[kind]}' for name, kind in zip(_ARGS, _ARG_TYPES, strict=True))
    + rf'(?:,"{_PLAIN}":(?:[-+.\de]+|"{_PLAIN}"))*}}}},\n',
    re.MULTILINE,
)
"""A span as `chrome_writer` writes it. Lines that this does not match go through `json`, which takes twice as long."""

_ARROW_LINE = re.compile(r'^{"ph":"[sf]",[^{}]*},\n', re.MULTILINE)


class _SmallIntegers(dict[str, int]):
    """The value of numerals that come again and again."""

    def __missing__(self, numeral: str) -> int:
        return self.setdefault(numeral, int(numeral))


class _Reader:
    """Collects what one file holds."""

    def __init__(self) -> None:
        self._metadata: dict[str, Any] | None = None
        self._host_pid = NONE
        self._lanes: dict[tuple[int, int], LaneId] = {}  # (pid, tid) -> lane
        self._words: dict[str, str] = {}  # one copy of each string, which thousands of spans share
        self._numbers = _SmallIntegers()
        self._spans: list[Span] = []
        self._counters: list[Counter] = []

    def read(self, text: TextIO) -> Trace:
        for key, value in members(text, "traceEvents", self._spans_of_lines):
            if key == SECTION:
                self._take_section(value)
            elif key == "traceEvents":
                self._take_events(value)
        if self._metadata is None:
            raise InputError(f"it is not a trace of this project: it has no section {SECTION!r}")
        return Trace(self._metadata, self._spans, self._counters)

    def _take_section(self, section: object) -> None:
        if not isinstance(section, dict) or section.get("schema") != SCHEMA:
            found = section.get("schema") if isinstance(section, dict) else section
            raise InputError(f"its {SECTION}.schema is {found!r}: this version reads schema {SCHEMA}")
        metadata, host_pid = section.get("metadata"), section.get("host_pid")
        if not isinstance(metadata, dict) or type(host_pid) is not int:
            raise InputError(f"its section {SECTION!r} lacks a usable 'metadata' or 'host_pid'")
        self._metadata, self._host_pid = metadata, host_pid

    def _take_events(self, events: list[Any]) -> None:
        if self._metadata is None:
            raise InputError(f"it is not a trace of this project: it has no section {SECTION!r} before its events")
        for event in events:
            if type(event) is Span:
                self._spans.append(event)
            else:
                self._take_event(event)

    def _take_event(self, event: dict[str, Any]) -> None:
        try:
            phase = event["ph"]
            if phase == "X":
                self._spans.append(self._span(event))
            elif phase == "C":
                self._counters.append(self._counter(event))
            elif phase == "M" and event["name"] == "thread_name":
                self._lanes[event["pid"], event["tid"]] = _lane(event["args"]["name"], event["pid"])
        except KeyError as error:
            raise InputError(f"its event {_shown(event)} lacks {error}") from error
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise InputError(f"its event {_shown(event)} is malformed: {error}") from error

    def _span(self, event: dict[str, Any]) -> Span:
        values = _arg_values(event["args"])
        if tuple(map(type, values)) != _ARG_TYPES:
            wrong = [n for n, value, kind in zip(_ARGS, values, _ARG_TYPES, strict=True) if type(value) is not kind]
            raise TypeError(f"the wrong type of {', '.join(wrong)}")
        lane = self._lanes.get((event["pid"], event["tid"]))
        if lane is None:
            raise ValueError("its thread has no name")
        number, op, step, layer, micro_batch, page, moved, flops, bound, waited_for, cause = values
        kind, rank = lane
        start_ns = _ns(event["ts"])
        end_ns = start_ns + _ns(event["dur"])
        word = self._words.setdefault
        return Span(
            number, word(op, op), kind, rank, step, layer, micro_batch, page, start_ns, end_ns, moved, flops,
            word(bound, bound), word(waited_for, waited_for), cause,
        )  # fmt: skip

    def _spans_of_lines(self, lines: str) -> list[Span] | None:
        """What `_take_event` would make of these lines; None if they are not all spans, or all arrows, as written."""
        count = lines.count("\n")
        rows = _SPAN_LINE.findall(lines)
        if len(rows) != count:
            return [] if len(_ARROW_LINE.findall(lines)) == count else None
        word, lanes, number = self._words.setdefault, self._lanes, self._numbers
        try:
            return [
                Span(
                    int(span_id), word(op, op), *lanes[number[pid], number[tid]],
                    number[step], number[layer], number[micro_batch], number[page],
                    (start_ns := int(us + ns)), start_ns + int(dur_us + dur_ns), int(moved), int(flops),
                    word(bound, bound), word(waited_for, waited_for), int(cause),
                )
                for (
                    pid, tid, us, ns, dur_us, dur_ns, span_id, op, step, layer, micro_batch, page,
                    moved, flops, bound, waited_for, cause,
                ) in rows
            ]  # fmt: skip
        except (KeyError, ValueError):
            return None  # `_span` finds the words for what is wrong

    def _counter(self, event: dict[str, Any]) -> Counter:
        name, pid, values = event["name"], event["pid"], event["args"]
        if type(name) is not str or type(pid) is not int or type(values) is not dict:
            raise TypeError("a counter has a name, a pid and args")
        if any(type(value) not in (int, float) for value in values.values()):
            raise TypeError("a counter's args are numbers")
        return Counter(name, _ns(event["ts"]), values, NONE if pid == self._host_pid else pid)


def _ns(microseconds: float) -> int:
    return round(microseconds * 1000)


def _lane(thread_name: str, pid: int) -> LaneId:
    """The lane of a thread: a device's lanes are named by their kind, the host's `PIN`, `PIN:1` and so on."""
    if type(pid) is not int:
        raise TypeError("a pid is a whole number")
    kind, _, rank = thread_name.partition(":")
    return (kind, int(rank or 0)) if kind in HOST_LANES else (kind, pid)


def _shown(event: object) -> str:
    text = repr(event)
    return text if len(text) <= 120 else f"{text[:120]}…"
