"""The house as it is built, read from source without importing it, and the picture that it must agree with.

A module has its dotted name (`sim.cost.setup`), a folder that of its `__init__.py` (`sim.cost`), its door.
"""

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

AT_THE_TOP = ("__main__",)
"""Root files that no picture shows: they use everything."""

MOST_ENTRIES = 10
"""Files and folders that a folder holds at most, `__init__` and `__main__` aside."""


@dataclass(frozen=True)
class Import:
    """`importer` says `from written import …`; the name is defined in the module `target`."""

    importer: str
    written: str
    target: str

    def __str__(self) -> str:
        return f"{self.importer} imports {self.target}" + (f" as {self.written}" if self.written != self.target else "")


@dataclass(frozen=True)
class Entry:
    """One line of the picture."""

    name: str
    sentence: str
    is_folder: bool


def read_picture(text: str) -> list[Entry]:
    """The entries of the tree between the marks of a document, in its order, by dotted names."""
    tree = text.partition("<!-- house -->")[2].partition("<!-- /house -->")[0]
    entries: list[Entry] = []
    path: list[str] = []
    for indent, name, sentence in re.findall(r"^( *)([\w.]+/?) *(.*)$", tree, re.MULTILINE):
        path[len(indent) // 2 :] = [name.removesuffix("/").removesuffix(".py")]
        entries.append(Entry(".".join(path), sentence, name.endswith("/")))
    return entries


class House:
    """All modules of some packages below a root."""

    def __init__(self, root: Path, packages: tuple[str, ...]) -> None:
        self.packages = packages
        files = [file for package in packages for file in sorted((root / package).rglob("*.py"))]
        self.files = {_dotted(file.relative_to(root)): file for file in files}
        self.folders = {name for name, file in self.files.items() if file.name == "__init__.py"}
        self.modules = [name for name in self.files if name not in self.folders]
        self._trees = {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in self.files.items()}

    @cached_property
    def doors(self) -> dict[str, dict[str, str]]:
        """Per folder with a stub, the module behind each name it exports, as the stub says it."""
        return {name: _stub(name, self.files[name].with_suffix(".pyi")) for name in self.folders}

    def defining(self, folder: str, name: str) -> str:
        """The module that defines a name which a folder exports; the folder where its stub does not tell."""
        behind = self.doors.get(folder, {}).get(name)
        return folder if behind is None else self.defining(behind, name) if behind in self.folders else behind

    @cached_property
    def imports(self) -> list[Import]:
        """Every import of one of our modules by another, wherever it stands in the file."""
        return [one for name in self.files for one in self._imports_of(name) if one.target != name]

    def _imports_of(self, importer: str) -> Iterator[Import]:
        for node in ast.walk(self._trees[importer]):
            if isinstance(node, ast.Import):
                yield from (Import(importer, one.name, one.name) for one in node.names if self._is_ours(one.name))
            elif isinstance(node, ast.ImportFrom):
                base = self._absolute(importer, node)
                for name in [one.name for one in node.names] if self._is_ours(base) else []:
                    whole = f"{base}.{name}"
                    module = whole in self.files
                    yield Import(importer, whole if module else base, whole if module else self.defining(base, name))
        yield from self._through_folders(importer)

    def _through_folders(self, importer: str) -> Iterator[Import]:
        """Names taken from a folder that was imported as such: `from sim import cost`, then `cost.Setup`."""
        nodes = list(ast.walk(self._trees[importer]))
        bound = {
            one.asname or one.name: f"{self._absolute(importer, node)}.{one.name}"
            for node in nodes
            if isinstance(node, ast.ImportFrom)
            for one in node.names
        }
        for node in nodes:
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                folder = bound.get(node.value.id)
                if folder in self.folders:
                    yield Import(importer, folder, self.defining(folder, node.attr))

    def _is_ours(self, module: str) -> bool:
        return module.partition(".")[0] in self.packages

    def _absolute(self, importer: str, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parts = importer.split(".")
        kept = parts[: len(parts) - node.level + (importer in self.folders)]
        return ".".join([*kept, *([node.module] if node.module else [])])

    def public_names(self) -> dict[str, list[str]]:
        """The modules that define each public class or function of the top level."""
        found = defaultdict(list)
        for name in self.modules:
            for node in self._trees[name].body:
                if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name[0] != "_":
                    found[node.name].append(name)
        return dict(found)

    def docstring(self, name: str) -> str:
        """What a module says of itself."""
        return ast.get_docstring(self._trees[name]) or ""


# what must hold: each yields what breaks it --------------------------------------------------------------------------


def package_arrows_up(house: House) -> Iterator[str]:
    """Imports of a package that stands above the importer's."""
    for one in house.imports:
        importer, target = (house.packages.index(name.partition(".")[0]) for name in (one.importer, one.target))
        if target > importer:
            yield str(one)


def arrows_up(house: House, picture: list[Entry]) -> Iterator[str]:
    """Imports, within a package or a folder, of what the picture shows further down the page than the importer."""
    order = {entry.name: at for at, entry in enumerate(picture)}
    for one in house.imports:
        importer, target = _parting(one.importer, one.target)
        own_door = importer.startswith(f"{target}.") and not _is_command(importer)  # it is above what is in the folder
        further_down = order.get(target, 0) > order.get(importer, len(picture))
        if own_door or (further_down and not target.startswith(f"{importer}.")):
            yield str(one)


def circles(house: House) -> list[str]:
    """A circle of modules, or of modules and subfolders in one folder, for each folder that has one."""
    modules: dict[str, set[str]] = defaultdict(set)
    rooms: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for one in house.imports:
        if one.importer in house.folders or one.target in house.folders:
            continue
        modules[one.importer].add(one.target)
        importer, target = _parting(one.importer, one.target)
        if importer != target:
            rooms[importer.rpartition(".")[0]][importer].add(target)
    found = [_circle(graph) for graph in (modules, *rooms.values())]
    return sorted({one for one in found if one})


def doors_missed(house: House) -> Iterator[str]:
    """Imports from behind a door by a module that is not in that folder; the command lines name their commands."""
    for one in house.imports:
        folders = [folder for folder in _folders_of(one.written) if folder in house.folders - set(house.packages)]
        closed = [folder for folder in folders if not one.importer.startswith(f"{folder}.")]
        if closed and one.written != closed[0] and not _names_a_command(one):
            yield str(one)


def _names_a_command(one: Import) -> bool:
    is_line = one.importer.rpartition(".")[2] in ("cli", "console")
    return is_line and _is_command(one.written)


def _is_command(module: str) -> bool:
    """A command is the topmost file of its folder, and what a command line names."""
    return module.endswith(("command", "commands"))


def exports_named_like_modules(house: House) -> Iterator[str]:
    """Exported names that a module or folder beside the stub has too: which of the two comes would be chance."""
    for folder, names in house.doors.items():
        yield from (f"{folder}.{name}" for name in names if f"{folder}.{name}" in house.files)


def doors_without_a_sentence(house: House) -> Iterator[str]:
    """Folders whose `__init__` does not say their idea in one sentence."""
    for folder in sorted(house.folders):
        if not re.fullmatch(r"[A-Z`][^\n]*[^\n.]\.", text := house.docstring(folder)) or ". " in text:
            yield folder


def full_folders(house: House, most: int = MOST_ENTRIES) -> dict[str, int]:
    """Folders with more entries than `most`, and how many."""
    held: dict[str, int] = defaultdict(int)
    for name in house.files:
        folder, _, last = name.rpartition(".")
        held[folder] += bool(folder) and last not in AT_THE_TOP
    return {folder: count for folder, count in held.items() if count > most}


def shared_names(house: House) -> dict[str, list[str]]:
    """Public classes and functions that several modules define; how a command is offered is the same everywhere."""
    return {name: where for name, where in house.public_names().items() if len(where) > 1}


def named_like_the_standard_library(house: House) -> list[str]:
    """Modules and folders that have the name of a module of the standard library."""
    return [name for name in house.files if name.rpartition(".")[2] in sys.stdlib_module_names]


def not_in_the_picture(house: House, picture: list[Entry]) -> Iterator[str]:
    """Folders and root files that the picture leaves out, shows without their being there, or describes otherwise."""
    shown = {entry.name: entry for entry in picture}
    roots = {name for name in house.modules if name.count(".") == 1 and name.rpartition(".")[2] not in AT_THE_TOP}
    for name in sorted(house.folders | roots):
        if name not in shown:
            yield f"{name} is not shown"
        elif name in house.folders and shown[name].sentence != house.docstring(name):
            yield f"{name} says {house.docstring(name)!r}"
    yield from (f"{name} is not there" for name in shown if name not in house.files)


def _dotted(file: Path) -> str:
    return ".".join(file.with_suffix("").parts).removesuffix(".__init__")


def _stub(folder: str, file: Path) -> dict[str, str]:
    if not file.exists():
        return {}
    nodes = [node for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.ImportFrom)]
    return {one.asname or one.name: f"{folder}.{node.module}" for node in nodes for one in node.names}


def _folders_of(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts) + 1)]


def _parting(one: str, other: str) -> tuple[str, str]:
    """The rooms in which two modules lie where their paths part: `sim.cost` and `sim.hrm` of two files in them."""
    mine, theirs = one.split("."), other.split(".")
    same = 0
    while same < min(len(mine), len(theirs)) and mine[same] == theirs[same]:
        same += 1
    return ".".join(mine[: same + 1]), ".".join(theirs[: same + 1])


def _circle(graph: dict[str, set[str]]) -> str:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        names = error.args[1][:-1]  # in the order of imports backwards, the first one again as the last
        start = names.index(min(names))
        return " <- ".join([*names[start:], *names[:start]])
    return ""
