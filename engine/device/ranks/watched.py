"""Work in a process a rank, watched from here: what the first says is heard, and one that is lost stops all.

Ranks are killed, not asked: one that waits for a lost one, in the code of a vendor, may hear nothing any more.
"""

import contextlib
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from engine.device.ranks.errors import Failure, RankError, died
from engine.device.ranks.joining import Rendezvous
from traces.errors import InputError

LOOK_S = 0.2
"""How often the watch looks up where nothing is to be heard: the delay of Ctrl-C."""

GRACE_S = 2.0
"""So long after the first failure the others may say theirs: the cause may be another's, or all may say the same."""

Tell = Callable[[Any], None]
"""Says something to who started the ranks; only that of the first is heard."""

Work = Callable[..., Any]
"""`work(place, tell, *arguments)` in each rank, importable there by its name; what the first returns is the result."""


def run_in_ranks(count: int, work: Work, *arguments: Any, hear: Callable[[Any], None] = lambda said: None) -> Any:
    """Does the work in `count` ranks at a time, each a new process of this host; returns what the first returns.

    `hear` gets what the first rank tells, here. When a rank fails or dies all others are killed, and the error names
    it: an InputError for what the user can mend, a RankError, which is one too, for a process that is killed. The same
    after Ctrl-C. In a script this stands under `if __name__ == "__main__":`, as all that starts processes.
    """
    if getattr(multiprocessing.process.current_process(), "_inheriting", False):
        raise InputError(
            "several devices: each has a process that reads this script first: put what it runs under "
            'if __name__ == "__main__":'
        )
    folder = Path(tempfile.mkdtemp(prefix="cgopipe-ranks-"))
    try:
        with contextlib.closing(_Ranks.started(count, folder, work, arguments)) as ranks:
            return ranks.result(hear)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class _Said:
    """Something that a rank tells."""

    value: Any


@dataclass(frozen=True, slots=True)
class _Returned:
    """What a rank's work gave."""

    value: Any


@dataclass(slots=True)
class _Ranks:
    """The processes, and how each of them ended."""

    processes: list[BaseProcess]
    connections: list[Connection]
    returned: dict[int, Any] = field(default_factory=dict)
    failures: dict[int, Failure | RankError] = field(default_factory=dict)

    @classmethod
    def started(cls, count: int, folder: Path, work: Work, arguments: tuple[Any, ...]) -> "_Ranks":
        """All of them, or none."""
        spawn, ranks = multiprocessing.get_context("spawn"), cls([], [])
        try:
            for index in range(count):
                ours, theirs = spawn.Pipe(duplex=False)
                place = Rendezvous(index, count, folder)
                process = spawn.Process(target=_be_rank, args=(place, theirs, work, arguments), name=f"rank {index}")
                ranks.connections.append(ours)
                process.start()
                ranks.processes.append(process)
                theirs.close()
        except BaseException:
            ranks.close()
            raise
        return ranks

    def result(self, hear: Callable[[Any], None]) -> Any:
        """What the first rank returns, once all have ended well. Raises what ended one that did not."""
        until = None
        while len(self.returned) < len(self.processes):
            self._look(hear)
            if self.failures and until is None:
                until = time.monotonic() + GRACE_S
            if until is not None and (self._is_clear or time.monotonic() > until):
                raise self._cause()
        return self.returned[0]

    def close(self) -> None:
        """Kills who is left."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()
            process.close()
        for connection in self.connections:
            connection.close()

    def _look(self, hear: Callable[[Any], None]) -> None:
        """Waits until somebody has something to say, or is gone."""
        left = {i for i in range(len(self.processes)) if i not in self.returned and i not in self.failures}
        by_source: dict[Any, int] = {self.connections[i]: i for i in left}
        by_source |= {self.processes[i].sentinel: i for i in left}
        ready = {by_source[one] for one in wait([*by_source], LOOK_S)}
        for index in sorted(ready):
            self._hear_out(index, hear)
            if index in left and not self.processes[index].is_alive():
                self._hear_out(index, hear)  # its last words
                if index not in self.returned and index not in self.failures:
                    self.failures[index] = died(index, self.processes[index].exitcode or 0)

    def _hear_out(self, index: int, hear: Callable[[Any], None]) -> None:
        while index not in self.returned and index not in self.failures and (said := self._next(index)) is not None:
            if isinstance(said, _Returned):
                self.returned[index] = said.value
            elif isinstance(said, Failure):
                self.failures[index] = said
            else:
                hear(said.value)

    def _next(self, index: int) -> "_Said | _Returned | Failure | None":
        """What a rank has said and nobody heard yet; None if there is nothing, or it is gone."""
        with contextlib.suppress(EOFError, OSError):
            if self.connections[index].poll():
                said: _Said | _Returned | Failure = self.connections[index].recv()
                return said
        return None

    @property
    def _is_clear(self) -> bool:
        """Whether no rank that is still to be heard could change what is told."""
        return len(self.returned) + len(self.failures) == len(self.processes) or any(
            isinstance(one, RankError) for one in self.failures.values()
        )

    def _cause(self) -> BaseException:
        """The failure that the others follow from: of who died, else of who was not left by another."""
        found = sorted(self.failures.items())
        for _, one in found:
            if isinstance(one, RankError):
                return one
        told = [(index, one) for index, one in found if isinstance(one, Failure)]
        index, first = next(((i, one) for i, one in told if not one.is_consequence), told[0])
        alike = len(told) == len(self.processes) and len({one.text for _, one in told}) == 1
        return first.error(index, all_say_so=alike)


def _be_rank(place: Rendezvous, connection: Connection, work: Work, arguments: tuple[Any, ...]) -> None:
    """A rank's process from its beginning to its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started it hears Ctrl-C, and ends it
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    lock = threading.Lock()

    def send(value: Any) -> None:
        with lock:  # lanes tell of themselves
            connection.send(value)

    def tell(value: Any) -> None:
        if place.index == 0:
            send(_Said(value))

    with _last_words(send):
        value = work(place, tell, *arguments)
        send(_Returned(value if place.index == 0 else None))


@contextlib.contextmanager
def _last_words(send: Callable[[Any], None]) -> Iterator[None]:
    try:
        yield
    except BaseException as error:  # whatever it is, who started this must not wait for it
        with contextlib.suppress(OSError):
            send(Failure.of(error, traceback.format_exc()))
        os._exit(1)  # other threads may wait for ranks that do not come


def _end_with(parent: BaseProcess | None) -> None:
    """Nobody hears this rank once who started it is gone."""
    if parent is not None:
        parent.join()
        os._exit(1)
