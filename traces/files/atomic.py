"""Files that are there whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A name to write under, which becomes `path` when all is written."""
    hidden = path.with_name(f".unfinished-{path.name}")
    yield hidden
    hidden.replace(path)
