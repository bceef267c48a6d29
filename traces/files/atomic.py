"""Files that are there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A name to write under, which becomes `path` when all is written; after a failure nothing is left of it."""
    hidden = path.with_name(f".unfinished-{os.getpid()}-{path.name}")
    try:
        yield hidden
        hidden.replace(path)
    finally:
        with suppress(OSError):
            hidden.unlink()
