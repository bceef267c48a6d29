"""What a command leaves behind: files first, then what it tells on standard output, whose reader may be gone."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from traces.errors import InputError

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
            writing(path, lambda path=path, write=write: write(str(path)))  # type: ignore[misc]
    if args.json is not None:
        write_json(args.json, content())
    if args.json != "-":
        show()
    return 0


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write results as JSON that says which version of it this is, to a file or to standard output (`-`)."""
    write_text(path, json.dumps({"schema": SCHEMA, **content}, indent=2, ensure_ascii=False) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Write a text to a file, or to standard output (`-`). Raises InputError as `writing`."""
    if path == "-":
        sys.stdout.write(text)
    else:
        writing(path, lambda: Path(path).write_text(text, encoding="utf-8"))


def writing(path: str | Path, write: Callable[[], object]) -> None:
    """Write something to a file. Raises InputError, which names it, if it cannot be written."""
    try:
        write()
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
