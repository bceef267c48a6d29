"""Texts, JSON and TOML that users write, with errors of one line; and files that are there whole or not at all."""

import json
import os
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from traces.errors import InputError


def read_text(path: Path) -> str:
    """The text of a file."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not a text file in UTF-8 (byte {error.start})") from None


def parse_object(text: str, where: str) -> dict[str, Any]:
    """The JSON object in a text."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{where}: holds a {type(content).__name__}; it must be an object: {{...}}")
    return content


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
        return tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: is not TOML: {error}") from None


UNFINISHED = ".unfinished-*"
"""The names of files that are being written; those of a process that was killed stay behind."""


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A name to write under, which becomes `path` when all is written; after a failure nothing is left of it."""
    hidden = path.with_name(UNFINISHED.replace("*", f"{os.getpid()}-{path.name}"))
    try:
        yield hidden
        hidden.replace(path)
    finally:
        with suppress(OSError):
            hidden.unlink()
