"""Tries mutants in copies of the project: first all tests without a mistake, then one mistake after the other."""

import asyncio
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import cache_from_source
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from tests.mutants.mutants import Mutant
from traces.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("traces", "sim", "engine", "validation", "tests", "pyproject.toml")
"""The checkout that this module belongs to, and what a copy of it needs."""

PLUGIN = Path(__file__).with_name("quick_failures.py")

LEAST_LIMIT_S = 60.0
LIMIT_FACTOR = 10
"""A mutant's tests may take so many times as long as their files took without it before they count as hanging."""

KILLED, TIMED_OUT, SURVIVED, UNCLEAR = "killed", "killed (timed out)", "survived", "unclear"
_VERDICTS = {None: TIMED_OUT, 0: SURVIVED, 1: KILLED, 2: KILLED, 4: KILLED}
"""By pytest's exit code: 1, a test fails; 2, a file of tests cannot be imported; 4, a test is not found."""

_FIRST_RED = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", re.MULTILINE)
_IMPORTS_ENGINE = re.compile(r"^(?:import|from) engine\b", re.MULTILINE)
_TAIL = 2_000


@dataclass(frozen=True, slots=True)
class Trial:
    """What became of one mutant: which test noticed it first, and what pytest wrote last where none did."""

    mutant: Mutant
    verdict: str
    by: str
    seconds: float
    output: str = ""

    @property
    def killed(self) -> bool:
        return self.verdict in (KILLED, TIMED_OUT)


async def prove(
    mutants: Sequence[Mutant],
    take: Callable[[Trial], None],
    jobs: int = 1,
    root: Path = ROOT,
    parts: Sequence[str] = PARTS,
) -> None:
    """Hand over each trial when it has ended. Whatever ends this call, no process and no copy is left.

    Raises InputError if a mutant is stale, or a test is red without any.
    """
    for mutant in mutants:
        mutant.applied_in(root)
    seconds: dict[str, float] = {}

    async def be_green(copy: Path, file: str, tests: Sequence[str]) -> None:
        run = await _pytest(copy, tests)
        if run.exit_code != 0:
            raise InputError(
                f"{run.red or file} is red without any mutant, so it proves nothing; mend it first: pytest -x {file}"
            )
        seconds[file] = run.seconds

    async def be_red(copy: Path, mutant: Mutant) -> None:
        usual_s = sum(seconds[file] for file in files_of_tests([mutant]))
        with broken_by(mutant, copy):
            run = await _pytest(copy, mutant.tests, max(LEAST_LIMIT_S, LIMIT_FACTOR * usual_s))
        verdict = _VERDICTS.get(run.exit_code, UNCLEAR)
        take(Trial(mutant, verdict, run.red, run.seconds, "" if verdict == KILLED else run.output))

    with TemporaryDirectory(prefix="mutants-") as folder:
        copies = [copy_project(root, parts, Path(folder, str(job))) for job in range(jobs)]
        await _share(copies, be_green, files_of_tests(mutants).items())
        await _share(copies, be_red, [(mutant,) for mutant in mutants])


async def _share(
    copies: Iterable[Path], work: Callable[..., Awaitable[None]], todo: Iterable[tuple[object, ...]]
) -> None:
    """Work off what is to do, one piece at a time in each copy; when one piece fails, the others end."""
    pieces = iter(todo)

    async def go_on(copy: Path) -> None:
        for piece in pieces:
            await work(copy, *piece)

    try:
        async with asyncio.TaskGroup() as group:
            for copy in copies:
                group.create_task(go_on(copy))
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None


def files_of_tests(mutants: Iterable[Mutant]) -> dict[str, list[str]]:
    """The tests of all mutants by their file, each once; a whole file covers its parts."""
    files: dict[str, list[str]] = {}
    for test in dict.fromkeys(test for mutant in mutants for test in mutant.tests):
        files.setdefault(test.partition("::")[0], []).append(test)
    return {file: [file] if file in tests else tests for file, tests in files.items()}


def copy_project(root: Path, parts: Sequence[str], folder: Path) -> Path:
    """A copy to make mistakes in."""
    folder.mkdir()
    for part in parts:
        if (root / part).is_dir():
            shutil.copytree(root / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        else:
            shutil.copy(root / part, folder)
    shutil.copy(PLUGIN, folder)
    return folder


@contextmanager
def broken_by(mutant: Mutant, copy: Path) -> Iterator[None]:
    """The copy with the mistake in it; afterwards it is as before."""
    before = (copy / mutant.file).read_text(encoding="utf-8")
    try:
        _write(copy / mutant.file, mutant.applied_in(copy))
        yield
    finally:
        _write(copy / mutant.file, before)


def _write(module: Path, text: str) -> None:
    """Write a module, and forget its bytecode: Python tells versions apart by length and whole seconds only."""
    module.write_text(text, encoding="utf-8")
    Path(cache_from_source(str(module))).unlink(missing_ok=True)


class _Run(NamedTuple):
    exit_code: int | None  # None if it did not end in time
    red: str  # the first test that failed
    seconds: float
    output: str


async def _pytest(copy: Path, tests: Sequence[str], limit_s: float | None = None) -> _Run:
    """Run tests until the first one fails, or until the limit, in a process group that ends with this call."""
    options = ("-q", "-x", "--tb=no", "-rfE", "-p", "no:cacheprovider", "-p", PLUGIN.stem)
    started = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pytest", *options, *tests,
        cwd=copy,
        env=_environment(copy, tests),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    output = ""
    try:
        async with asyncio.timeout(limit_s):
            output = (await process.communicate())[0].decode(errors="replace")
    except TimeoutError:
        return _Run(None, "", time.monotonic() - started, f"no end within {limit_s:.0f} s")
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):  # it has just ended
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    found = _FIRST_RED.search(output)
    return _Run(process.returncode, found[1] if found else "", time.monotonic() - started, output[-_TAIL:])


def _environment(copy: Path, tests: Sequence[str]) -> dict[str, str]:
    """The caller's, with the copy in front of whatever is installed.

    Compiled functions run as plain Python, which is quicker here. Those of the engine exist only compiled: tests that
    import it keep what was compiled in the copy itself, by the state of the file that it was compiled from.
    Tests need no plugin that is not named: what is installed beside takes longer to start than most of them.
    """
    files = [path for path in (copy / test.partition("::")[0] for test in tests) if path.is_file()]
    engine = any(_IMPORTS_ENGINE.search(path.read_text(encoding="utf-8")) for path in files)
    numba = {"NUMBA_CACHE_DIR": str(copy / ".numba")} if engine else {"NUMBA_DISABLE_JIT": "1"}
    path = os.pathsep.join(filter(None, (str(copy), os.environ.get("PYTHONPATH"))))
    plain = {"MPLBACKEND": "Agg", "HF_HUB_OFFLINE": "1", "COLUMNS": "500", "PYTHONPATH": path}
    return {**os.environ, **plain, **numba, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
