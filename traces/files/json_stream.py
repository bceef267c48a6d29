"""Reads a JSON object member by member, so that a file larger than memory can be read.

`json` builds the whole document at once: for a trace of a million events, several gigabytes of dictionaries.
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TextIO

CHUNK_CHARS = 1 << 16
"""How much is read at a time: the values of one chunk stay in the processor's cache."""

MAX_VALUE_CHARS = 1 << 26
"""A single value longer than this is taken for damage; without a limit, one missing brace would read all the rest."""

_SPACE = re.compile(r"[ \t\r\n]*")
_NEXT_EVENT = re.compile(r"[ \t\r\n]*,[ \t\r\n]*(?=[^ \t\r\n])")


class DamagedJsonError(ValueError):
    """What was read is not the JSON that was expected. The message says what was wrong, and where."""


Shortcut = Callable[[str], list[Any] | None]
"""Turns whole lines, each an element and its comma, into elements; or None, if it does not know these lines."""


def members(text: TextIO, streamed: str, shortcut: Shortcut = lambda lines: None) -> Iterator[tuple[str, Any]]:
    """Yield (key, value) for each member of the object in `text`, in order.

    The array under the key `streamed` is not built: it yields (streamed, list of elements) as often as it takes. Its
    elements are decoded as JSON, except those of lines that `shortcut` turns into something else.
    Raises DamagedJsonError, and what `text` raises.
    """
    source = _Source(text)
    source.expect("{")
    if source.peek() == "}":
        source.expect("}")
    else:
        while True:
            key = source.value()
            if not isinstance(key, str):
                source.fail("a member's name is expected")
            source.expect(":")
            if key == streamed:
                for batch in source.elements(shortcut):
                    yield key, batch
            else:
                yield key, source.value()
            if source.expect(",}") == "}":
                break
    if source.peek():
        source.fail("something follows the end of the object")


def _no_constant(name: str) -> NoReturn:
    raise DamagedJsonError(f"{name} is no JSON number")


class _Source:
    """The part of the text that has been read but not yet used, and a decoder for it."""

    def __init__(self, text: TextIO) -> None:
        self._text = text
        self._buffer = ""
        self._at = 0  # the first character of the buffer not yet used
        self._used = 0  # characters of the text before the buffer
        self._decode = json.JSONDecoder(parse_constant=_no_constant).raw_decode

    def peek(self) -> str:
        """The next character that is no space, or '' at the end."""
        while True:
            match = _SPACE.match(self._buffer, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._refill():
                return ""

    def expect(self, allowed: str) -> str:
        """Use the next character, which must be one of those allowed."""
        found = self.peek()
        if not found or found not in allowed:
            self.fail(f"expected {' or '.join(map(repr, allowed))}, found {found!r}" if found else "it ends too early")
        self._at += 1
        return found

    def value(self) -> object:
        """Use the next value, however long."""
        self.peek()
        while True:
            try:
                value, end = self._decode(self._buffer, self._at)
            except (ValueError, RecursionError) as error:
                self._refill_or_fail(error)
                continue
            if end == len(self._buffer) and self._refill():  # a number may go on
                continue
            self._at = end
            return value

    def elements(self, shortcut: Shortcut) -> Iterator[list[Any]]:
        """Use the array that comes next, and yield its elements in batches: those that each chunk completes."""
        self.expect("[")
        if self.peek() == "]":
            self.expect("]")
            return
        while True:
            self.peek()  # the decoder wants to start on the element itself
            batch = self._lines(shortcut)
            if batch is None:
                batch = self._batch()
            batch.append(self.value())
            yield batch
            if self.expect(",]") == "]":
                return

    def _lines(self, shortcut: Shortcut) -> list[Any] | None:
        """The elements of the lines that lie complete in the buffer, if the shortcut knows them."""
        comma = self._buffer.rfind(",\n", self._at)
        if comma == -1:
            return None
        elements = shortcut(self._buffer[self._at : comma + 2])
        if elements is not None:
            self._at = comma + 2
        return elements

    def _batch(self) -> list[Any]:
        """The elements that lie complete in the buffer, each with the comma behind it."""
        batch: list[Any] = []
        buffer, at, decode, next_event = self._buffer, self._at, self._decode, _NEXT_EVENT.match
        try:
            while True:
                value, end = decode(buffer, at)
                comma = next_event(buffer, end)
                if comma is None:
                    break
                batch.append(value)
                at = comma.end()
        except (ValueError, RecursionError):
            pass  # cut off by the end of the buffer, or damaged: value() finds out
        self._at = at
        return batch

    def _refill(self) -> bool:
        """Read on, keeping what is not yet used. False at the end of the text."""
        pending = len(self._buffer) - self._at
        more = self._text.read(max(CHUNK_CHARS, pending))
        if not more:
            return False
        self._used += self._at
        self._buffer = self._buffer[self._at :] + more
        self._at = 0
        return True

    def _refill_or_fail(self, error: Exception) -> None:
        if isinstance(error, RecursionError):
            self.fail("it is nested too deeply")
        if isinstance(error, DamagedJsonError):
            self.fail(str(error))
        if len(self._buffer) - self._at > MAX_VALUE_CHARS:
            self.fail(f"a value does not end within {MAX_VALUE_CHARS} characters")
        if not self._refill():
            at_end = self._at >= len(self._buffer)
            self.fail("it ends too early" if at_end or _cut_off(error, self._buffer) else _reason(error))

    def fail(self, what: str) -> NoReturn:
        raise DamagedJsonError(f"{what} (character {self._used + self._at})")


def _cut_off(error: Exception, buffer: str) -> bool:
    """Whether the decoder ran into the end of the text rather than into something wrong."""
    return isinstance(error, json.JSONDecodeError) and (
        error.pos >= len(buffer.rstrip()) or error.msg.startswith("Unterminated")
    )


def _reason(error: Exception) -> str:
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error)
