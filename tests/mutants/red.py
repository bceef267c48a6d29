"""Runs pytest in a copy of the project, as a process group of its own that ends when it is told to."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from tests.mutants.project import PLUGIN, Copy

GREEN = 0
RED = frozenset({1, 2, 4})
"""Exit codes of pytest when a test fails, when a file of tests cannot be imported, or a test in it not be found."""

FIRST_RED = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", re.MULTILINE)

IMPORTS_ENGINE = re.compile(r"^(?:import|from) engine\b", re.MULTILINE)

TAIL = 2_000
"""Characters kept of what pytest wrote."""


@dataclass(frozen=True, slots=True)
class TestRun:
    """One run of pytest. `exit_code` is None if it did not end in time; `red` is the first test that failed."""

    exit_code: int | None
    red: str
    seconds: float
    output: str


class StoppedError(Exception):
    """Nothing runs any more, and nothing will."""


class Pytest:
    """Runs tests in copies, several at a time, until it is stopped."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = Lock()
        self._stopped = False

    def run(self, copy: Copy, tests: Sequence[str], limit_s: float | None = None) -> TestRun:
        """Run tests until the first one fails, or until the limit. Raises StoppedError."""
        started = time.monotonic()
        process = self._start(copy, tests)
        try:
            output, _ = process.communicate(timeout=limit_s)
            exit_code: int | None = process.returncode
        except subprocess.TimeoutExpired:
            _kill(process)
            output, exit_code = process.communicate()[0], None
        finally:
            with self._lock:
                self._running.discard(process)
        if self._stopped:
            raise StoppedError
        found = FIRST_RED.search(output)
        return TestRun(exit_code, found.group(1) if found else "", time.monotonic() - started, output[-TAIL:])

    def stop(self) -> None:
        """End all that runs, at once."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                _kill(process)

    def _start(self, copy: Copy, tests: Sequence[str]) -> subprocess.Popen[str]:
        options = ("-q", "-x", "--tb=no", "-rfE", "-p", "no:cacheprovider", "-p", PLUGIN.stem)
        with self._lock:
            if self._stopped:
                raise StoppedError
            process = subprocess.Popen(
                [sys.executable, "-m", "pytest", *options, *tests],
                cwd=copy.root,
                env=_environment(copy.root, tests),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
            self._running.add(process)
        return process


def _environment(root: Path, tests: Sequence[str]) -> dict[str, str]:
    """The caller's, with the copy in front of whatever is installed.

    Compiled functions run as plain Python, which is quicker here. Those of the engine exist only compiled: tests that
    import it keep what was compiled in the copy itself, by the state of the file that it was compiled from.
    """
    path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    engine = any(IMPORTS_ENGINE.search(_text(root / test.partition("::")[0])) for test in tests)
    numba = {"NUMBA_CACHE_DIR": str(root / ".numba")} if engine else {"NUMBA_DISABLE_JIT": "1"}
    plain = {"MPLBACKEND": "Agg", "HF_HUB_OFFLINE": "1", "COLUMNS": "500", **numba}
    return {**os.environ, **plain, "PYTHONPATH": path}


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def _kill(process: subprocess.Popen[str]) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):  # it has just ended
            os.killpg(process.pid, signal.SIGKILL)
