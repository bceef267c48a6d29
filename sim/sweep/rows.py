"""The file of a sweep: a row a line, CSV or JSON, flushed as they come, so that a run cut short can be resumed."""

import csv
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from sim.sweep.sweep import Row, Sweep
from traces.errors import InputError, error_prefix
from traces.files import read_objects, read_text, reading_csv

FORMATS = (".csv", ".jsonl")


def to_csv(cells: Sequence[Any]) -> str:
    """One line of CSV: nothing for None, `true` and `false`, floats with all their digits."""
    line = io.StringIO()
    texts = [str(cell).lower() if isinstance(cell, bool) else cell for cell in cells]
    csv.writer(line, lineterminator="\n").writerow(texts)
    return line.getvalue()


class RowFile:
    """Where the rows of a sweep go: a file by its suffix, or CSV on standard output for None."""

    def __init__(self, path: Path | None, sweep: Sweep, *, resume: bool = False) -> None:
        """Open the file. With `resume`, keep the rows of an earlier run of the same sweep.

        A last line that was not written to its end is cut off. Raises InputError for a file that does not fit.
        """
        self._path, self._sweep = path, sweep
        self.as_json = path is not None and path.suffix.lower() == ".jsonl"
        self.done = 0
        self._needs_header = not self.as_json
        self._file: TextIO = sys.stdout if path is None else self._opened(path, resume)

    def append(self, row: Row) -> None:
        """Write a row so that it stays, whatever comes next; the header comes with the first."""
        if self._needs_header:
            self._write(to_csv(self._sweep.columns))
            self._needs_header = False
        self._write(json.dumps(row) + "\n" if self.as_json else to_csv(list(row.values())))
        self.done += 1

    def close(self) -> None:
        """Close the file."""
        if self._path is not None:
            self._file.close()

    def _write(self, line: str) -> None:
        try:
            self._file.write(line)
            self._file.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise InputError(
                f"--out {self._path}: cannot be written: {error.strerror}; {self.done} rows are complete: make room "
                "and go on with --resume"
            ) from None

    def _opened(self, path: Path, resume: bool) -> TextIO:
        try:
            if path.exists() and path.stat().st_size:
                if not resume:
                    raise InputError(f"--out {path}: exists already; give --resume to go on with it, or another name")
                self._keep_complete_lines(path)
            return path.open("a", encoding="utf-8", newline="")
        except OSError as error:
            raise InputError(f"--out {path}: cannot be written: {error.strerror}") from None

    def _keep_complete_lines(self, path: Path) -> None:
        content = path.read_bytes()
        complete = content[: content.rfind(b"\n") + 1]
        lines = complete.decode("utf-8", errors="replace").split("\n")[:-1]
        if not self.as_json and lines:
            if lines.pop(0) != to_csv(self._sweep.columns).rstrip("\n"):
                raise InputError(f"--out {path}: its columns are not those of this sweep; give another name")
            self._needs_header = False
        self._check(path, lines)
        if len(complete) < len(content):
            with path.open("r+b") as file:
                file.truncate(len(complete))
        self.done = len(lines)

    def _check(self, path: Path, lines: Sequence[str]) -> None:
        """Refuse rows that are not the first of this sweep."""
        if len(lines) > len(self._sweep):
            raise InputError(f"--out {path}: {len(lines)} rows are more than this sweep has: {len(self._sweep)}")
        for number, (line, point) in enumerate(zip(lines, self._sweep.points(), strict=False), 1):
            if not self._begins(line, point.start):
                raise InputError(
                    f"--out {path}: row {number} is not row {number} of this sweep: it was begun with other axes, "
                    "options, presets or another version; give another name"
                )

    def _begins(self, line: str, start: Row) -> bool:
        if not self.as_json:
            return line.startswith(to_csv(list(start.values())).rstrip("\n") + ",")
        try:
            row = json.loads(line)
        except ValueError:
            return False
        return isinstance(row, dict) and list(row.items())[: len(start)] == list(start.items())


def read_rows(path: Path) -> list[Row]:
    """The rows of a file, numbers as numbers. Raises InputError if it is not one that a sweep wrote."""
    with error_prefix("--rows "):
        in_json = path.suffix.lower() == ".jsonl"
        found = [row for _, row in read_objects(path)] if in_json else list(_csv_rows(path))
        if not found or not all("feasible" in row for row in found):
            raise InputError(f"{path}: holds no rows of a sweep; it is a file that `sweep --out` wrote")
    return found


def _csv_rows(path: Path) -> Iterator[Row]:
    with reading_csv(path):
        table = list(csv.DictReader(io.StringIO(read_text(path))))
    for number, cells in enumerate(table, 2):
        if None in cells or None in cells.values():
            raise InputError(f"{path}: line {number} is not as long as the header")
        yield {name: _value(cell) for name, cell in cells.items()}


def _value(cell: str) -> str | float | bool | None:
    try:
        return float(cell)
    except ValueError:
        return {"": None, "true": True, "false": False}.get(cell, cell)
