"""A machine as one knows it who has measured nothing on it: without the numbers that were fitted to its runs."""

import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from sim.problem import Basis, Hardware
from traces.files import read_toml
from validation.published import PRESETS

KEPT = ("optimizer",)
"""Tables that are kept whole: what they hold is another program's, and no prediction rests on it."""


def kin_of(machine: str) -> str:
    """The preset of its device or host that a machine's file goes back to: machines of one kin share numbers."""
    while not (base := _base(machine)).startswith("_"):
        machine = base
    return machine


def _base(machine: str) -> str:
    """What a machine's file extends; a preset without a file of its own extends nothing that others share."""
    return str(read_toml(_file(machine)).get("extends", "_")) if _file(machine).is_file() else "_"


def _file(machine: str) -> Path:
    return PRESETS / f"{machine}.toml"


@lru_cache(maxsize=64)
def unmeasured(machine: str) -> Hardware:
    """The preset with what it extends in the place of each fitted number."""
    with tempfile.TemporaryDirectory() as folder:
        return Hardware.load(_without_fits(machine, Path(folder)))


def _without_fits(machine: str, folder: Path) -> Path:
    import tomli_w

    table = _not_fitted(read_toml(_file(machine)))
    if _file(table.get("extends", "")).is_file():  # else a name without a file
        table["extends"] = str(_without_fits(table["extends"], folder))
    path = folder / f"{machine}.toml"
    path.write_text(tomli_w.dumps(table), encoding="utf-8")
    return path


def _not_fitted(table: Mapping[str, Any]) -> dict[str, Any]:
    kept = {
        name: one for name, one in table.items() if not (isinstance(one, dict) and one.get("basis") == Basis.FITTED)
    }
    parts = {name: _not_fitted(one) for name, one in kept.items() if isinstance(one, dict) and "value" not in one}
    return {**kept, **parts, **{name: kept[name] for name in KEPT if name in kept}}


def _is_fitted(entry: object) -> bool:
    return isinstance(entry, dict) and entry.get("basis") == Basis.FITTED
