"""Reads any file that holds a run: a trace of this project, or what the PyTorch profiler saw of the engine."""

import os

from traces.errors import InputError
from traces.files.chrome_reader import SECTION, opened, read_chrome
from traces.files.json_stream import members
from traces.files.pytorch_profile import read_profile
from traces.trace import Trace

_EVENTS = "traceEvents"


def read_trace(path: str | os.PathLike[str]) -> Trace:
    """Read a run, whichever of the two kinds of file it is in.

    Raises InputError, naming the file and what is wrong with it, if it is missing, damaged or neither of the two.
    """
    return read_chrome(path) if _is_ours(path) else read_profile(path)


def _is_ours(path: str | os.PathLike[str]) -> bool:
    """Whether our section comes before any events, as it does in every trace of this project."""
    with opened(path) as text:
        for key, _ in members(text, _EVENTS):
            if key in (SECTION, _EVENTS):
                return key == SECTION
        raise InputError(f"it is no trace: it has neither a section {SECTION!r} nor any {_EVENTS!r}")
