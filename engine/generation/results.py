"""The output file: lines appended and flushed to the disk as they come, so that a run that was cut short can go on."""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from engine.generation.requests import Request, line_of_output
from traces.errors import InputError


class Results:
    """Lines in input order."""

    def __init__(self, path: Path, requests: Sequence[Request], resume: bool) -> None:
        """Opens the file. With `resume`, keeps what an earlier run wrote. Raises InputError if it does not fit."""
        self.path = path
        self._requests = requests
        if path.exists() and path.stat().st_size and not resume:
            raise InputError(f"output {path}: exists already; give --resume to go on with it, or another name")
        self.done = self._keep_complete_lines() if resume and path.exists() else 0
        self._kept_to = requests[self.done - 1].line if self.done else 0
        try:
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise InputError(f"output {path}: cannot be written: {error.strerror}") from None

    def append(self, lines: Sequence[str]) -> None:
        """Writes the next lines. Raises InputError if they cannot be written; those before stay."""
        try:
            self._file.write("".join(lines))
            self._file.flush()
            if self.path.is_file():
                os.fsync(self._file.fileno())
        except OSError as error:
            raise InputError(
                f"output {self.path}: cannot be written: {error.strerror}; {self.done} lines are complete: make room "
                f"and go on with --resume"
            ) from None
        self.done += len(lines)

    def close(self) -> None:
        """Closes the file, whatever state it is in."""
        with suppress(OSError):  # the same failure that append told of: buffered text that finds no room
            self._file.close()

    def has(self, request: Request) -> bool:
        """Whether there was a line for a request when the file was opened."""
        return request.line <= self._kept_to

    def _keep_complete_lines(self) -> int:
        """Cuts off a last line that was not written to its end; checks that the rest belongs to these requests."""
        content = self.path.read_bytes()
        complete = content[: content.rfind(b"\n") + 1]
        lines = complete.decode("utf-8").splitlines()
        if len(lines) > len(self._requests):
            raise InputError(f"output {self.path}: holds {len(lines)} results for {len(self._requests)} requests")
        self._check([_read(line) for line in lines])
        os.truncate(self.path, len(complete))
        return len(lines)

    def _check(self, found: Sequence[dict[str, Any]]) -> None:
        for result, request in zip(found, self._requests, strict=False):
            self._check_belongs(result, request)

    def _check_belongs(self, result: dict[str, Any], request: Request) -> None:
        names = ("custom_id",) if request.is_openai else ("prompt", "prompt_token_ids")
        if not result or any(result.get(name) != request.given.get(name) for name in names):
            told = f"does not belong to this input, see line {request.line}; give another name"
            raise InputError(f"output {self.path}: {told}")


class UnorderedResults(Results):
    """Lines in any order, each of which says which line of the input it is of."""

    def __init__(self, path: Path, requests: Sequence[Request], resume: bool) -> None:
        self._found = set[int]()
        super().__init__(path, requests, resume)

    def has(self, request: Request) -> bool:
        return request.line in self._found

    def _check(self, found: Sequence[dict[str, Any]]) -> None:
        by_line = {request.line: request for request in self._requests}
        for at, result in enumerate(found, 1):
            line = line_of_output(result)
            if line not in by_line or line in self._found:
                told = f"line {at} names no line of this input, or one twice: was it written without --stream?"
                raise InputError(f"output {self.path}: {told} Give another name")
            self._check_belongs(result, by_line[line])
            self._found.add(line)


def _read(line: str) -> dict[str, Any]:
    try:
        result = json.loads(line)
    except ValueError:
        return {}
    return result if isinstance(result, dict) else {}
