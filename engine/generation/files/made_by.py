"""What made results: the model and whatever else they depend on, so that those of two settings are not mixed."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from traces.cli import project_version
from traces.errors import InputError


@dataclass(frozen=True, slots=True)
class MadeBy:
    """A model and the options that its results depend on; `seed` is None where nothing is drawn."""

    model: str
    options: Mapping[str, Any]
    seed: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """It as JSON values, without options that were not given."""
        given = {name: value for name, value in self.options.items() if value is not None}
        seed = {} if self.seed is None else {"seed": self.seed}
        return {"cgopipe": project_version(), "model": self.model, **given, **seed}

    @property
    def fingerprint(self) -> str:
        """It in one text."""
        return json.dumps(self.to_dict(), sort_keys=True)

    def check_same(self, found: Mapping[str, Any] | None, where: str) -> None:
        """Raises InputError for results that something else made; `found` is what they say."""
        told = dict(found or {})
        if not told:
            raise InputError(f"{where}: does not say what made it, so it cannot be gone on with: give another name")
        own = self.to_dict()
        if _same_folder(told["model"], self.model):
            told["model"] = self.model
        others = [name for name in sorted({*told, *own} - {"cgopipe"}) if told.get(name) != own.get(name)]
        if others:
            before, now = (", ".join(_as_text(name, one.get(name)) for name in others) for one in (told, own))
            raise InputError(f"{where}: was made with {before}, not {now}: run with the same, or give another name")


def seed_in(found: Mapping[str, Any] | None) -> int | None:
    """The seed that results were drawn with, if they say one."""
    seed = (found or {}).get("seed")
    return seed if isinstance(seed, int) else None


def read_maker(found: Any) -> dict[str, Any] | None:
    """What results say of what made them, as JSON values or a text of them; None for anything else."""
    try:
        value = json.loads(found) if isinstance(found, str) else found
    except ValueError:
        return None
    return value if isinstance(value, dict) and "model" in value else None


def _same_folder(one: Any, other: Any) -> bool:
    return all(isinstance(name, str) for name in (one, other)) and Path(one).resolve() == Path(other).resolve()


def _as_text(name: str, value: Any) -> str:
    return f"no {name}" if value is None else f"{name} {str(value)[:100]}"
