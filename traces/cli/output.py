"""What a command leaves behind: files first, then what it tells on standard output, whose reader may be gone."""

import argparse
import codecs
import errno
import io
import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from traces.errors import InputError
from traces.files import appearing, shown_path

MOST_CHARACTERS = 320
"""Of a line that says what is wrong; a longer one, which repeats what was given, loses its middle."""

_PLAIN = {"μ": "u", "×": "x", "−": "-", "→": "->", "…": "...", "≤": "<=", "≥": ">=", "±": "+-", "·": ".", "–": "-"}
"""What stands for a character that an output cannot show."""

SCHEMA = 1  # of the JSON that commands write; it grows when a field goes or means something else

File = tuple[str | Path | None, Callable[[str], object]]
"""Where something is to be written, if it is, and what writes it there."""


def deliver(
    args: argparse.Namespace, content: Callable[[], Mapping[str, Any]], show: Callable[[], object], *files: File
) -> int:
    """Write the files, then tell: with `--json -` the results as JSON, otherwise the tables. Returns the exit code.

    Raises InputError, which names it, for a file that cannot be written.
    """
    for path, write in files:
        if path is not None:
            writing(path, write)
    if args.json is not None:
        write_json(args.json, content())
    if args.json != "-":
        show()
    return 0


def prepare_output() -> None:
    """Let standard output and error take any text, in whatever characters they have.

    Where standard output was closed before the start, it says so when something is written.
    """
    codecs.register_error("plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plain")
    sys.stdout = sys.stdout or _Closed()
    sys.stderr = sys.stderr or io.StringIO()


def leave_output() -> None:
    """Write no more to standard output, which would fail once more at the end of the program."""
    with suppress(OSError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def shortened(line: str) -> str:
    """A line of a length that is read: of a longer one the beginning and the end."""
    line = "".join(one if one.isprintable() else " " for one in line)
    if len(line) <= MOST_CHARACTERS:
        return line
    end = MOST_CHARACTERS // 3
    return f"{line[: MOST_CHARACTERS - end - 3]} … {line[-end:]}"


def _plain(error: UnicodeError) -> tuple[str, int]:
    """An error handler of `codecs`: characters that say nearly the same."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(one, "?") for one in error.object[error.start : error.end]), error.end


class _Closed(io.TextIOBase):
    """A standard output that was closed before the program began."""

    encoding = "utf-8"

    def write(self, _: str) -> int:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write results as JSON that says which version of it this is, to a file or to standard output (`-`)."""
    escaped = path == "-" and "utf" not in (sys.stdout.encoding or "").lower()
    write_text(path, json.dumps({"schema": SCHEMA, **content}, indent=2, ensure_ascii=escaped) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Write a text to a file, or to standard output (`-`). Raises InputError as `writing`."""
    if path == "-":
        sys.stdout.write(text)
    else:
        writing(path, lambda name: Path(name).write_text(text, encoding="utf-8", errors="backslashreplace"))


def make_folder(path: str | Path) -> None:
    """Make a folder for files, if it is not there. Raises InputError, which names it, if it cannot be made."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{shown_path(path)}: cannot be made: {reason}") from None


def writing(path: str | Path, write: Callable[[str], object]) -> None:
    """Write something to a file, which is there whole or not at all. Raises InputError if it cannot be written."""
    target = Path(path)
    try:
        if target.exists() and not (target.is_file() and os.access(target, os.W_OK)):
            write(str(path))  # a device or a pipe; or what says why it cannot be
            return
        with appearing(target) as unfinished:
            write(str(unfinished))
    except (OSError, UnicodeEncodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error.reason
        raise InputError(f"{shown_path(path)}: cannot be written: {reason}") from None
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{shown_path(path)}: cannot be written: {error}") from None
