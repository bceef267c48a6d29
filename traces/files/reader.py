"""Reads any file that holds a run: a trace of this project, or what the PyTorch profiler saw of the engine."""

import gc
import gzip
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msgspec.json import Decoder

from traces.errors import InputError
from traces.files.chrome_reader import chrome_trace
from traces.files.document import EVENTS, SECTION, Document
from traces.files.pytorch_profile import profiled_trace
from traces.trace import Trace

_GZIP = b"\x1f\x8b"
_DOCUMENT = Decoder(Document)


def read_trace(path: str | os.PathLike[str]) -> Trace:
    """Read a run, whichever of the two kinds of file it is in, compressed or not.

    Raises InputError, naming the file and what is wrong with it, if it is missing, damaged or neither of the two.
    """
    try:
        with _no_collection():
            return _read(Path(path))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        problem = f"it is a damaged gzip file: {error}"
    except OSError as error:
        problem = f"it cannot be read: {error.strerror or error}"
    except UnicodeDecodeError:
        problem = "it is not text, so no trace"
    except RecursionError:
        problem = "it is damaged, or not JSON: it is nested too deeply"
    except InputError as error:
        problem = str(error)
    except ValueError as error:  # also msgspec's errors
        problem = f"it is damaged, or not JSON: {error}"
    raise InputError(f"{path}: {problem}")


def _read(path: Path) -> Trace:
    content = path.read_bytes()
    if content.startswith(_GZIP):
        content = gzip.decompress(content)
    document = _DOCUMENT.decode(content)
    if document.section:
        return chrome_trace(document)
    if document.events:
        return profiled_trace(document)
    raise InputError(f"it is no trace: it has neither a section {SECTION!r} nor any {EVENTS!r}")


@contextmanager
def _no_collection() -> Iterator[None]:
    """Collecting garbage would go over the growing list again and again, for a third of the time, and find none."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
