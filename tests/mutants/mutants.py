"""Mutants: mistakes that a developer might make, each as a small change to one file, and the tests that must notice.

They are data, in `catalogue/*.toml`: an array of tables per file of the project, named by its path.
"""

import tomllib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from traces.errors import InputError, check_keys, nearest

CATALOGUE = Path(__file__).with_name("catalogue")

FIELDS = ("name", "breaks", "was", "becomes", "tests")


@dataclass(frozen=True, slots=True)
class Mutant:
    """One mistake: in `file`, the only place that reads `was` reads `becomes`.

    `breaks` says in words what is wrong then. `tests` are pytest's files or node ids, those that notice soonest first.
    """

    name: str
    file: str
    breaks: str
    was: str
    becomes: str
    tests: tuple[str, ...]

    def applied_in(self, root: Path) -> str:
        """The file's text with the mistake. Raises InputError if the mutant is stale: its place is not there once."""
        path = root / self.file
        if not path.is_file():
            raise InputError(f"mutant {self.name} is stale: there is no {self.file}; bring it up to date")
        text = path.read_text(encoding="utf-8")
        if text.count(self.was) != 1:
            raise InputError(
                f"mutant {self.name} is stale: what it replaces occurs {text.count(self.was)} times in {self.file} "
                f"and must occur once; bring it up to date"
            )
        changed = text.replace(self.was, self.becomes)
        if changed == text:
            raise InputError(f"mutant {self.name} changes nothing in {self.file}; bring it up to date")
        try:
            compile(changed, self.file, "exec", dont_inherit=True)
        except SyntaxError as error:
            raise InputError(f"mutant {self.name} leaves {self.file} no valid Python: {error}") from None
        return changed


def load(folder: Path = CATALOGUE) -> tuple[Mutant, ...]:
    """All mutants of a catalogue. Raises InputError if one is incomplete or two have the same name."""
    found = tuple(mutant for path in sorted(folder.glob("*.toml")) for mutant in _read(path))
    twice = [name for name, count in Counter(mutant.name for mutant in found).items() if count > 1]
    if twice:
        raise InputError(f"{folder}: two mutants are called {twice[0]!r}; give each a name of its own")
    return found


def _read(path: Path) -> Iterable[Mutant]:
    for file, tables in tomllib.loads(path.read_text(encoding="utf-8")).items():
        for table in tables:
            check_keys(table, FIELDS, FIELDS, "mutant", str(table.get("name", "")))
            yield Mutant(**{**table, "file": file, "tests": tuple(table["tests"])})


def chosen(mutants: Sequence[Mutant], names: Sequence[str]) -> tuple[Mutant, ...]:
    """The mutants with these names, all without any. Raises InputError for a name that is not among them."""
    known = [mutant.name for mutant in mutants]
    for name in names:
        if name not in known:
            raise InputError(f"--only: no mutant is called {name!r}{nearest(name, known)}; --list shows all of them")
    return tuple(mutant for mutant in mutants if not names or mutant.name in names)
