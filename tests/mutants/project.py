"""The project under test: where its source is, and copies of it in which one file at a time goes wrong."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import cache_from_source
from pathlib import Path

from tests.mutants.mutants import Mutant
from traces.errors import InputError

PARTS = ("traces", "sim", "engine", "validation", "tests", "pyproject.toml")
PLUGIN = Path(__file__).with_name("quick_failures.py")


@dataclass(frozen=True, slots=True)
class Project:
    """A source checkout: the folder, and the files and folders in it that its tests need."""

    root: Path
    parts: tuple[str, ...] = PARTS

    def __post_init__(self) -> None:
        missing = [part for part in self.parts if not (self.root / part).exists()]
        if missing:
            raise InputError(
                f"prove-red needs the project's source with its tests, and {self.root} has no {missing[0]}: "
                f"call it from the root of a source checkout"
            )

    @classmethod
    def installed(cls) -> "Project":
        """The checkout that this very module belongs to."""
        return cls(Path(__file__).resolve().parents[2])

    def check(self, mutants: Sequence[Mutant]) -> None:
        """Raise InputError if a mutant does not fit the source as it is now."""
        for mutant in mutants:
            path = self.root / mutant.file
            if not path.is_file():
                raise InputError(f"mutant {mutant.name} is stale: there is no {mutant.file}; bring it up to date")
            mutant.applied(path.read_text(encoding="utf-8"))

    def copy_to(self, folder: Path) -> "Copy":
        """A copy to make mistakes in."""
        folder.mkdir()
        for part in self.parts:
            source, target = self.root / part, folder / part
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", ".*"))
            else:
                shutil.copy(source, target)
        shutil.copy(PLUGIN, folder)
        return Copy(folder)


@dataclass(frozen=True, slots=True)
class Copy:
    """One copy of the project; whoever holds it is alone in it."""

    root: Path

    @contextmanager
    def broken_by(self, mutant: Mutant) -> Iterator[None]:
        """The copy with the mistake in it; afterwards it is as before."""
        path = self.root / mutant.file
        before = path.read_bytes()
        try:
            self._write(path, mutant.applied(before.decode()).encode())
            yield
        finally:
            self._write(path, before)

    @staticmethod
    def _write(path: Path, content: bytes) -> None:
        """Write a module, and forget its bytecode: Python tells versions apart by length and whole seconds only."""
        path.write_bytes(content)
        Path(cache_from_source(str(path))).unlink(missing_ok=True)
