"""Tests go in by the public way: how often they reach for a private name of ours may only fall."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("traces", "sim", "engine", "validation", "tests")
ALLOWED = {"engine": 3, "sim": 2}
"""How many private names the tests of a package reach for still; of those not named, none. Only ever lower it."""

OF_OTHERS = {
    *("_replace", "_asdict", "_forward_pre_hooks", "_attn_implementation", "_is_profiler_enabled"),
    *("_is_expert_parallel", "_experts_implementation", "_optimize_model_for_decode", "_apply_gate"),
    *("_schema", "_ensure_stream_exists"),
    *(f"_handle_{what}" for what in ("kernel_launch", "event_record", "event_wait", "event_deletion")),
}
"""Public methods of named tuples, and attributes of torch and transformers that have no other name."""


def private_names(source: str) -> list[str]:
    """Private names of ours that a test imports, reaches for on something else than itself, or patches by its path."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
            found += [one.name for one in node.names if _is_private(one.name)]
        elif isinstance(node, ast.Attribute) and _is_private(node.attr) and not _is_own(node.value):
            found.append(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            path = re.fullmatch(rf"(?:{'|'.join(PACKAGES)})(?:\.\w+)*\.(_\w+)(?:\.\w+)*", node.value)
            found += [path[1]] if path and _is_private(path[1]) else []
    return found


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in OF_OTHERS


def _is_own(value: ast.expr) -> bool:
    return isinstance(value, ast.Name) and value.id in ("self", "cls")


def reaches() -> dict[str, list[str]]:
    """Where the tests of each package do it."""
    found: dict[str, list[str]] = {}
    for file in sorted((ROOT / "tests").rglob("*.py")):
        names = Counter(private_names(file.read_text(encoding="utf-8")))
        place = file.relative_to(ROOT / "tests")
        found.setdefault(place.parts[0], []).extend(f"{place}: {name}" for name in names.elements())
    return {place: names for place, names in found.items() if names}


def test_private_names_are_not_reached_for_more_often():
    over = {place: names for place, names in reaches().items() if len(names) > ALLOWED.get(place, 0)}
    assert over == {}


def test_what_is_allowed_falls_with_what_is_there():
    found = reaches()
    assert {place: len(found.get(place, ())) for place in ALLOWED} == ALLOWED


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("from sim.cost.setup import _batch, Setup", ["_batch"]),
        ("def f():\n    from engine.device import open\n    open._close()", ["_close"]),
        ("monkeypatch.setattr('sim.cost.setup._batch', None)", ["_batch"]),
        ("monkeypatch.setattr('validation.published._Rows.read', None)", ["_Rows"]),
        ("class A:\n    def f(self):\n        return self._own", []),
        ("point._replace(x=1), __name__, module.__file__, 'sim/_plain', _local", []),
        ("from os import _exit", []),
    ],
)
def test_what_counts_as_reaching(source, names):
    assert private_names(source) == names
