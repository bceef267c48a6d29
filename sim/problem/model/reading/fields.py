"""Look-up in a Hugging Face `config.json`: the same thing has many names, and every error names them.

A field that is null counts as absent. A dotted name looks inside a nested section. A value may be a list with an entry
per layer, as HunYuan and ERNIE write it. What was read is noted, so that a reader can say what it passed over.
"""

from collections.abc import Mapping
from typing import Any

from sim.problem.model.reading.families import NAMES
from traces.errors import InputError, check_count, check_flag, check_text

MOST = 10**9
"""Of any dimension: the largest vocabularies have a few hundred thousand words."""

_NESTED = ("text_config", "language_config", "llm_config", "thinker_config")
_OF_LAYERS = "per_layer_config"
"""By a layer's number, what it has instead of the model's own value."""


class Fields:
    """The fields of one configuration. Where a language model is nested in a larger one, its own fields come first."""

    def __init__(self, values: Mapping[str, Any], where: str = "", noted: set[str] | None = None) -> None:
        self.where = where
        self.values, self._own = _with_nested(values)
        self._noted = set() if noted is None else noted

    def __contains__(self, name: str) -> bool:
        return self._get(name) is not None

    @property
    def noted(self) -> set[str]:
        """The names that somebody has looked at."""
        return self._noted

    @property
    def own(self) -> Mapping[str, Any]:
        """What the language model itself says, without a larger one around it."""
        return {name: self.values[name] for name in self._own}

    def _get(self, name: str) -> object:
        value: object = self.values
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None:
            self._noted.add(name)
        return value

    def has_some(self, name: str) -> bool:
        """Whether a field is set to more than nothing: a list with entries, a number above zero."""
        return bool(self._get(name))

    def names(self, name: str) -> tuple[str, ...]:
        """A field's usual name, and its others."""
        return (name, *NAMES.get(name, ()))

    def find(self, name: str) -> tuple[str, Any]:
        """The first name of a field that is set, and its value; (the usual name, None) where none is."""
        known = self.names(name)
        return next(((one, value) for one in known if (value := self._get(one)) is not None), (name, None))

    def count(self, name: str, default: int | None = None, minimum: int = 1, layer: int = 0, most: int = MOST) -> int:
        """A whole number. Raises InputError where it is missing (without a `default`), no number, or out of range."""
        name, value = self.find(name)
        if value is None:
            if default is None:
                raise InputError(f"{self.where}{name} is missing (looked for {', '.join(self.names(name))})")
            return default
        if isinstance(value, list):
            value = self._entry(name, value, layer)
        return check_count(self.where + name, value, minimum, most)

    def flag(self, name: str, default: bool = False) -> bool:
        name, value = self.find(name)
        return default if value is None else check_flag(self.where + name, value)

    def text(self, name: str, default: str = "") -> str:
        name, value = self.find(name)
        return default if value is None else check_text(self.where + name, value) or default

    def entries(self, name: str) -> list[Any] | None:
        """A list, whatever it holds; None where the field is absent or no list. Step writes its numbers as a text."""
        value = self.find(name)[1]
        if isinstance(value, str) and value.replace(",", "").replace(" ", "").isdigit():
            return [int(one) for one in value.split(",") if one.strip()]
        return value if isinstance(value, list) else None

    def per_layer(self, name: str, layer: int) -> object:
        """The entry of one layer in a list that has one for each; None where there is no such list."""
        name, value = self.find(name)
        return self._entry(name, value, layer) if isinstance(value, list) else None

    def section(self, name: str) -> "Fields":
        """A nested section; an empty one where it is absent."""
        value = self._get(name)
        return Fields(value if isinstance(value, Mapping) else {}, f"{self.where}{name}: ")

    def of_layer(self, index: int) -> "Fields":
        """The same for one layer, with what it has of its own."""
        given = self.values.get(_OF_LAYERS)
        if not isinstance(given, Mapping):
            return self
        self._noted.add(_OF_LAYERS)
        own = [mine for number, mine in given.items() if str(number).isdigit() and int(number) == index]
        return self.with_(own[0]) if own and isinstance(own[0], Mapping) else self

    def with_(self, values: Mapping[str, Any]) -> "Fields":
        """The same with other values; those that are null change nothing."""
        changed = {name: value for name, value in values.items() if value is not None}
        return Fields({**self.values, **changed}, self.where, self._noted) if changed else self

    def _entry(self, name: str, values: list[Any], layer: int) -> object:
        if layer >= len(values):
            raise InputError(f"{self.where}{name} has {len(values)} entries, too few for entry {layer}")
        return values[layer]


def _with_nested(values: Mapping[str, Any]) -> tuple[dict[str, Any], frozenset[str]]:
    """The fields of a model, of the language model inside it first, and the names of the latter."""
    nested = next((section for name in _NESTED if isinstance(section := values.get(name), Mapping)), None)
    if nested is None:
        return dict(values), frozenset(values)
    found, own = _with_nested(nested)
    inner = {name: value for name, value in found.items() if value is not None}
    return {**{name: value for name, value in values.items() if name not in _NESTED}, **inner}, own & set(inner)
