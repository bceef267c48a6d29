"""Files of requests: a JSON object a line, ours or of OpenAI's batch format, or a table as CSV."""

import csv
import io
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from traces.errors import InputError, check_keys, error_prefix
from traces.files import read_objects, read_text, reading_csv

COLUMNS = ("arrival_s", "prompt_tokens", "generated_tokens", "max_tokens")
"""Of a table: only the second must be there."""

Line = tuple[str, Mapping[str, Any]]
"""Where a request stands, as in `requests.jsonl: line 3`, and what is said of it."""


def request_lines(path: Path) -> list[Line]:
    """Every request of a file. Raises InputError, with the line, for one that cannot be read, and for an empty file."""
    found = list(_rows(path) if path.suffix.lower() == ".csv" else _objects(path))
    if not found:
        raise InputError(f'{path}: is empty; give one request a line, such as {{"prompt_tokens": 77}}')
    return found


def _objects(path: Path) -> Iterator[Line]:
    for where, line in read_objects(path):
        yield where, _flat(line, where) if "body" in line else line


def _flat(line: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """A line of OpenAI's batch format as one of ours: the words of all its messages, and its limit."""
    body = line["body"]
    messages = body.get("messages") if isinstance(body, dict) else None
    if not isinstance(messages, list):
        raise InputError(f"{where}: body: holds no list of messages; an OpenAI batch line has one")
    found = {name: line[name] for name in ("arrival_s", "generated_tokens") if name in line}
    limit = body.get("max_completion_tokens", body.get("max_tokens"))
    if limit is not None:
        found["max_tokens"] = limit
    return {**found, "prompt": " ".join(text for message in messages for text in _texts(message))}


def _texts(message: Any) -> Iterator[str]:
    """What a message says: its content is a text, or parts of which some are texts."""
    content = message.get("content") if isinstance(message, dict) else None
    for part in content if isinstance(content, list) else [{"text": content}]:
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            yield part["text"]


def _rows(path: Path) -> Iterator[Line]:
    with reading_csv(path):
        yield from _rows_of(path)


def _rows_of(path: Path) -> Iterator[Line]:
    table = csv.DictReader(io.StringIO(read_text(path)), skipinitialspace=True)
    header = [name.strip() for name in table.fieldnames or ()]
    with error_prefix(f"{path}: "):
        check_keys(dict.fromkeys(header), COLUMNS, COLUMNS[1:2], hint=f"the first line names columns: {COLUMNS}")
    table.fieldnames = header
    for row in table:
        where = f"{path}: line {table.line_num}"
        if None in row or None in row.values():
            raise InputError(f"{where}: is not as long as the header, {','.join(header)}")
        yield where, {name: _number(cell.strip()) for name, cell in row.items() if cell.strip()}


def _number(text: str) -> int | float | str:
    """The number in a text, or the text."""
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text
