"""Texts, JSON and TOML that users write, with errors of one line; and files that are there whole or not at all."""

import csv
import json
import os
import re
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any

from traces.errors import InputError

MOST_BYTES = 2**30
"""Of a text file: a workload of a million requests has some tens of millions."""

MOST_DEPTH = 100
"""Of tables within tables: those of models and machines are four deep."""


def read_text(path: Path) -> str:
    """The text of a file."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InputError(f"{path}: is too large: {path.stat().st_size:,} bytes of at most {MOST_BYTES:,}")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{shown_path(path)}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not a text file in UTF-8 (byte {error.start})") from None
    except InputError:
        raise
    except ValueError as error:  # a path with a NUL in it
        raise InputError(f"{shown_path(path)}: cannot be read: {error}") from None


def is_file(path: str | Path) -> bool:
    """Whether there is such a file; what cannot be the name of one is none."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


@contextmanager
def reading_csv(path: str | Path) -> Iterator[None]:
    """Make an InputError of what is no table while a block reads one."""
    try:
        yield
    except csv.Error as error:
        raise InputError(f"{path}: is not CSV: {error}") from None


def shown_path(path: str | Path) -> str:
    """A path in a message: of one that is longer than any file's, how it begins."""
    text = str(path)
    return text if len(text) <= MOST_PATH else f"{text[:MOST_PATH]}…"


MOST_PATH = 200
"""Characters of a path that a message repeats at most."""


def parse_object(text: str, where: str) -> dict[str, Any]:
    """The JSON object in a text."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{where}: holds a {type(content).__name__}; it must be an object: {{...}}")
    check_depth(content, where)
    return content


def check_depth(content: dict[str, Any], where: str) -> None:
    """Refuse what is nested more deeply than any file of ours: functions that go through it would have no room."""
    level: list[Any] = [content]
    for _ in range(MOST_DEPTH):
        values = chain.from_iterable(one.values() if isinstance(one, dict) else one for one in level)
        level = [one for one in values if isinstance(one, dict | list)]
        if not level:
            return
    raise InputError(f"{where}: is nested too deeply: more than {MOST_DEPTH} tables or lists within each other")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    return parse_object(read_text(path), str(path))


def read_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file that has one a line, each with where it is: `requests.jsonl: line 3`."""
    for number, line in enumerate(read_text(path).split("\n"), 1):  # not splitlines(): JSON text may hold U+2028
        if line.strip():
            where = f"{path}: line {number}"
            yield where, parse_object(line, where)


def read_toml(path: Path) -> dict[str, Any]:
    """The tables in a file."""
    try:
        content = tomllib.loads(read_text(path))
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not TOML: {error}") from None
    check_depth(content, str(path))
    return content


UNFINISHED = ".unfinished-*"
"""The names of files that are being written; those of a process that was killed stay behind."""


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A name to write under, which becomes `path` when all is written; after a failure nothing is left of it.

    What a process left of it that was killed goes, too.
    """
    path = path.resolve()
    hidden = path.with_name(UNFINISHED.replace("*", f"{os.getpid()}-{path.name}"))
    try:
        _remove_left(path)
        yield hidden
        hidden.replace(path)
    finally:
        with suppress(OSError):
            hidden.unlink()


def _remove_left(path: Path) -> None:
    """Remove unfinished files of this name whose process is no more."""
    for one in path.parent.iterdir():
        found = re.fullmatch(r"\.unfinished-(\d+)-(.+)", one.name)
        if found and found[2] == path.name and not _is_running(int(found[1])):
            with suppress(OSError):
                one.unlink()


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
