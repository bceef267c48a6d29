"""Look-up in a Hugging Face `config.json`: the same thing has many names, and every error names them.

A field that is null counts as absent. A dotted name looks inside a nested section. A value may be a list with an entry
per layer, as HunYuan and ERNIE write it.
"""

from collections.abc import Mapping
from typing import Any

from traces.errors import InputError, check_count, check_flag, check_text

Names = tuple[str, ...]

_NESTED = ("text_config", "language_config", "llm_config")


class Fields:
    """The fields of one configuration. Where a language model is nested in a larger one, its own fields come first."""

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self.source = source
        sections = (values.get(name) for name in _NESTED)
        nested: Mapping[str, Any] = next((section for section in sections if isinstance(section, Mapping)), {})
        self._values = {**values, **{name: value for name, value in nested.items() if value is not None}}

    def __contains__(self, name: str) -> bool:
        return self._get(name) is not None

    def _get(self, name: str) -> object:
        value: object = self._values
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    def find(self, names: Names) -> tuple[str, Any]:
        """The first of these names that is set, and its value; (the first name, None) where none is."""
        return next(((name, value) for name in names if (value := self._get(name)) is not None), (names[0], None))

    def error(self, problem: str) -> InputError:
        return InputError(f"{self.source}: {problem}")

    def count(self, names: Names, default: int | None = None, minimum: int = 1, layer: int = 0) -> int:
        """A whole number. Raises InputError where it is missing (without a `default`), no number, or too small."""
        name, value = self.find(names)
        if value is None and default is None:
            raise self.error(f"{names[0]} is missing (looked for {', '.join(names)})")
        if value is None and default is not None:
            return default
        if isinstance(value, list):
            value = self._entry(name, value, layer)
        return check_count(f"{self.source}: {name}", value, minimum)

    def flag(self, names: Names, default: bool = False) -> bool:
        name, value = self.find(names)
        return default if value is None else check_flag(f"{self.source}: {name}", value)

    def text(self, names: Names, default: str = "") -> str:
        name, value = self.find(names)
        return default if value is None else check_text(f"{self.source}: {name}", value) or default

    def entries(self, names: Names) -> list[Any] | None:
        """A list, whatever it holds; None where the field is absent or no list."""
        value = self.find(names)[1]
        return value if isinstance(value, list) else None

    def per_layer(self, names: Names, layer: int) -> object:
        """The entry of one layer in a list that has one for each; None where there is no such list."""
        name, value = self.find(names)
        return self._entry(name, value, layer) if isinstance(value, list) else None

    def section(self, name: str) -> "Fields":
        """A nested section; an empty one where it is absent."""
        value = self._get(name)
        return Fields(value if isinstance(value, Mapping) else {}, f"{self.source}: {name}")

    def _entry(self, name: str, values: list[Any], layer: int) -> object:
        if layer >= len(values):
            raise self.error(f"{name} has {len(values)} entries, too few for entry {layer}")
        return values[layer]
