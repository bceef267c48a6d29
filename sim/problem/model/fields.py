"""Look-up in a Hugging Face `config.json`: the same thing has many names, and every error names them.

A field that is null counts as absent. A dotted name looks inside a nested section. A value may be a list with an entry
per layer, as HunYuan and ERNIE write it.
"""

from collections.abc import Mapping
from typing import Any

from sim.problem.model.families import NAMES
from traces.errors import InputError, check_count, check_flag, check_text

MOST = 10**9
"""Of any dimension: the largest vocabularies have a few hundred thousand words."""

_NESTED = ("text_config", "language_config", "llm_config")


class Fields:
    """The fields of one configuration. Where a language model is nested in a larger one, its own fields come first."""

    def __init__(self, values: Mapping[str, Any], where: str = "") -> None:
        self.where = where
        sections = (values.get(name) for name in _NESTED)
        nested: Mapping[str, Any] = next((section for section in sections if isinstance(section, Mapping)), {})
        self.values = {**values, **{name: value for name, value in nested.items() if value is not None}}

    def __contains__(self, name: str) -> bool:
        return self._get(name) is not None

    def _get(self, name: str) -> object:
        value: object = self.values
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

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
        """A list, whatever it holds; None where the field is absent or no list."""
        value = self.find(name)[1]
        return value if isinstance(value, list) else None

    def per_layer(self, name: str, layer: int) -> object:
        """The entry of one layer in a list that has one for each; None where there is no such list."""
        name, value = self.find(name)
        return self._entry(name, value, layer) if isinstance(value, list) else None

    def section(self, name: str) -> "Fields":
        """A nested section; an empty one where it is absent."""
        value = self._get(name)
        return Fields(value if isinstance(value, Mapping) else {}, f"{self.where}{name}: ")

    def _entry(self, name: str, values: list[Any], layer: int) -> object:
        if layer >= len(values):
            raise InputError(f"{self.where}{name} has {len(values)} entries, too few for entry {layer}")
        return values[layer]
