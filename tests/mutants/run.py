"""Tries mutants: first all their tests without any mistake, which must be green, then one mistake after the other."""

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from typing import TypeVar

from tests.mutants.mutants import Mutant
from tests.mutants.project import Copy, Project
from tests.mutants.red import GREEN, RED, Pytest, TestRun
from traces.errors import InputError

LEAST_LIMIT_S = 60.0
LIMIT_FACTOR = 10
"""A mutant's tests may take so many times as long as their files took without it before they count as hanging."""

Done = TypeVar("Done")


class Verdict(StrEnum):
    """What became of a mutant."""

    KILLED = "killed"
    TIMED_OUT = "killed (timed out)"
    SURVIVED = "survived"
    UNCLEAR = "unclear"  # pytest itself failed


@dataclass(frozen=True, slots=True)
class Trial:
    """One mutant: whether a test noticed, which one first, and how long that took.

    `output` is the end of what pytest wrote, where a test did not settle it.
    """

    mutant: Mutant
    verdict: Verdict
    by: str
    seconds: float
    output: str = ""

    @property
    def killed(self) -> bool:
        return self.verdict in (Verdict.KILLED, Verdict.TIMED_OUT)


Progress = Callable[[str], None]
"""Is told what has ended: a file of tests, or a mutant's name."""


def files_of_tests(mutants: Sequence[Mutant]) -> dict[str, list[str]]:
    """The tests of all mutants by their file, each once; a whole file covers its parts."""
    files: dict[str, list[str]] = {}
    for test in (test for mutant in mutants for test in mutant.tests):
        own = files.setdefault(test.partition("::")[0], [])
        if test not in own:
            own.append(test)
    return {file: [file] if file in tests else tests for file, tests in files.items()}


def prove(
    project: Project, mutants: Sequence[Mutant], jobs: int = 1, progress: Progress = lambda what: None
) -> Generator[Trial, None, None]:
    """Outcomes as they come. Raises InputError if a mutant is stale, or a test is red without any.

    Closing the iterator ends what runs and removes the copies.
    """
    project.check(mutants)
    with _workshop(project, jobs) as workshop:
        seconds = _green_without_mutants(workshop, mutants, progress)
        trials = [workshop.submit(partial(_try, workshop, mutant, seconds)) for mutant in mutants]
        for trial in as_completed(trials):
            outcome = trial.result()
            progress(outcome.mutant.name)
            yield outcome


class _Workshop:
    """Copies of the project, and threads that each take one for a job."""

    def __init__(self, copies: Sequence[Copy], threads: ThreadPoolExecutor) -> None:
        self.pytest = Pytest()
        self._threads = threads
        self._free: SimpleQueue[Copy] = SimpleQueue()
        for copy in copies:
            self._free.put(copy)

    def submit(self, job: Callable[[Copy], Done]) -> Future[Done]:
        return self._threads.submit(self._in_a_copy, job)

    def _in_a_copy(self, job: Callable[[Copy], Done]) -> Done:
        copy = self._free.get()
        try:
            return job(copy)
        finally:
            self._free.put(copy)


@contextmanager
def _workshop(project: Project, jobs: int) -> Iterator[_Workshop]:
    with TemporaryDirectory(prefix="prove-red-") as folder, ThreadPoolExecutor(jobs) as threads:
        workshop = _Workshop([project.copy_to(Path(folder) / str(at)) for at in range(jobs)], threads)
        try:
            yield workshop
        finally:
            workshop.pytest.stop()
            threads.shutdown(cancel_futures=True)


def _green_without_mutants(workshop: _Workshop, mutants: Sequence[Mutant], progress: Progress) -> dict[str, float]:
    """How many seconds each file of tests took."""
    seconds: dict[str, float] = {}
    runs = {
        workshop.submit(partial(workshop.pytest.run, tests=tests)): file
        for file, tests in files_of_tests(mutants).items()
    }
    for run in as_completed(runs):
        file, ran = runs[run], run.result()
        if ran.exit_code != GREEN:
            raise InputError(
                f"{ran.red or file} is red without any mutant, so it proves nothing; mend it first: pytest -x {file}"
            )
        seconds[file] = ran.seconds
        progress(file)
    return seconds


def _try(workshop: _Workshop, mutant: Mutant, seconds: dict[str, float], copy: Copy) -> Trial:
    usual_s = sum(seconds[file] for file in files_of_tests([mutant]))
    with copy.broken_by(mutant):
        ran = workshop.pytest.run(copy, mutant.tests, max(LEAST_LIMIT_S, LIMIT_FACTOR * usual_s))
    verdict = _verdict(ran)
    return Trial(mutant, verdict, ran.red, ran.seconds, "" if verdict is Verdict.KILLED else ran.output)


def _verdict(ran: TestRun) -> Verdict:
    if ran.exit_code is None:
        return Verdict.TIMED_OUT
    if ran.exit_code == GREEN:
        return Verdict.SURVIVED
    return Verdict.KILLED if ran.exit_code in RED else Verdict.UNCLEAR
