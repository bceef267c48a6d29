"""The output file: lines appended and flushed to the disk as they come, so that a run that was cut short can go on.

One run writes it at a time, and only a file of results of the same requests and settings is gone on with.
"""

import fcntl
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from engine.generation.files.answers import beginning_of_line, is_failure, is_result, line_of_output, maker_of
from engine.generation.files.made_by import MadeBy
from engine.generation.files.requests import Request
from traces.errors import InputError


class Results:
    """Lines in input order."""

    def __init__(self, path: Path, requests: Sequence[Request], resume: bool) -> None:
        """Opens the file and locks it. With `resume`, keeps what an earlier run wrote.

        Raises InputError, and leaves the file as it is, if it is not there to go on with.
        """
        self.path = path
        self._requests = requests
        self.done = self.failed = 0
        self.made_by: dict[str, Any] | None = None
        """What the results that were there already say of what made them."""
        self._file = _locked(path)
        try:
            self._began_empty = not path.is_file() or not path.stat().st_size
            if not self._began_empty:
                self._go_on(resume)
        except BaseException:
            self._file.close()
            raise
        self._kept_to = requests[self.done - 1].line if self.done else 0

    def append(self, lines: Sequence[str]) -> None:
        """Writes the next lines. Raises InputError if they cannot be written; those before stay."""
        try:
            self._file.write("".join(lines).encode("utf-8"))
            self._file.flush()
            if self.path.is_file():
                os.fsync(self._file.fileno())
        except OSError as error:
            raise InputError(
                f"output {self.path}: cannot be written: {error.strerror}; {self.done} lines are complete: make room "
                f"and go on with --resume"
            ) from None
        self.done += len(lines)
        self.failed += sum(is_failure(_read(line)) for line in lines)

    def close(self) -> None:
        """Closes the file, whatever state it is in; one that was begun for nothing is removed."""
        with suppress(OSError):
            if self._began_empty and self.path.is_file() and not self.path.stat().st_size:
                self.path.unlink()
        with suppress(OSError):  # the same failure that append told of: buffered text that finds no room
            self._file.close()

    def has(self, request: Request) -> bool:
        """Whether there was a line for a request when the file was opened."""
        return request.line <= self._kept_to

    def check_made_by(self, made_by: MadeBy) -> None:
        """Raises InputError if what is there was made with other settings."""
        if self.done > self.failed:
            made_by.check_same(self.made_by, f"output {self.path}")

    def _go_on(self, resume: bool) -> None:
        """Cuts off a last line that was not written to its end; checks that the rest belongs to these requests."""
        if not resume:
            raise InputError(f"output {self.path}: exists already; give --resume to go on with it, or another name")
        content = self.path.read_bytes()
        complete = content[: content.rfind(b"\n") + 1]
        try:
            lines = complete.decode("utf-8").split("\n")[:-1]
        except UnicodeDecodeError:
            raise InputError(f"output {self.path}: holds no results but other bytes; give another name") from None
        found = [_read(line) for line in lines]
        for at, value in enumerate(found, 1):
            if not is_result(value):
                raise InputError(f"output {self.path}: line {at} is no result; give another name")
        if not lines and not self._may_have_begun(content):
            raise InputError(f"output {self.path}: holds no complete result; give another name, or remove it")
        if len(lines) > len(self._requests):
            raise InputError(
                f"output {self.path}: holds {len(lines)} results for {len(self._requests)} requests: it does not "
                f"belong to this input; give another name"
            )
        self._check(found)
        makers = [maker_of(one) for one in found if not is_failure(one)]
        self.made_by = makers[0] if makers else None
        if any(one != self.made_by for one in makers):
            raise InputError(f"output {self.path}: holds results of several settings; give another name")
        self._file.truncate(len(complete))
        self.done, self.failed = len(lines), sum(map(is_failure, found))

    def _may_have_begun(self, content: bytes) -> bool:
        """Whether bytes may be the beginning of the first result, cut short."""
        starts = [beginning_of_line(one).encode("utf-8") for one in self._requests]
        return any(one.startswith(content) or content.startswith(one) for one in starts)

    def _check(self, found: Sequence[dict[str, Any]]) -> None:
        for result, request in zip(found, self._requests, strict=False):
            self._check_belongs(result, request)

    def _check_belongs(self, result: dict[str, Any], request: Request) -> None:
        names = ("custom_id",) if request.is_openai else ("prompt", "prompt_token_ids")
        if any(result.get(name) != request.given.get(name, "" if request.is_openai else None) for name in names):
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


def _locked(path: Path) -> IO[bytes]:
    """The file, opened so that no other run writes it. Raises InputError for one that cannot be, or is written."""
    while True:
        try:
            file = path.open("ab")
        except (OSError, ValueError) as error:
            told = getattr(error, "strerror", None) or error
            raise InputError(f"output {path}: cannot be written: {told}") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise InputError(f"output {path}: another run writes it: wait for that one, or give another name") from None
        except OSError:  # a file system, or a device, that knows no locks
            return file
        with suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                return file
        file.close()  # who wrote it before had begun it for nothing, and has removed it


def _read(line: str) -> dict[str, Any]:
    try:
        result = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return result if isinstance(result, dict) else {}
