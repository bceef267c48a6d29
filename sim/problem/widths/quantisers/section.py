"""A section of a quantiser's configuration, read field by field: every error names the field."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from traces.errors import InputError, check_count, check_flag, check_range, shown

MOST_BITS = 64


class Section:
    """Fields under several names; one that is null is absent."""

    def __init__(self, values: object, where: str) -> None:
        self.where = where
        if not isinstance(values, Mapping):
            raise InputError(f"{where}: {shown(values)} is not a table of fields")
        self.values: Mapping[str, Any] = {str(name): value for name, value in values.items() if value is not None}

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def find(self, *names: str) -> tuple[str, Any]:
        """The first name that is set, and its value; (the first, None) where none is."""
        return next(((one, self.values[one]) for one in names if one in self.values), (names[0], None))

    def bits(self, *names: str, default: float | None = None) -> float:
        """A width of at least one bit; a text such as `int4` or `float8_e4m3fn` says it with its first number."""
        name, value = self.find(*names)
        if value is None:
            if default is None:
                raise InputError(f"{self.where}: {name} is missing (looked for {', '.join(names)})")
            return default
        if isinstance(value, str) and (digits := re.search(r"\d+", value)):
            value = int(digits[0])
        return check_range(f"{self.where}: {name}", value, 1, MOST_BITS, "a width in bits")

    def count(self, *names: str, default: int, least: int = 1) -> int:
        name, value = self.find(*names)
        return default if value is None else check_count(f"{self.where}: {name}", value, least)

    def flag(self, name: str, default: bool = False) -> bool:
        return check_flag(f"{self.where}: {name}", self.values.get(name, default))

    def text(self, *names: str) -> str:
        """In small letters; nothing where it is absent or no text."""
        value = self.find(*names)[1]
        return value.lower() if isinstance(value, str) else ""

    def texts(self, *names: str) -> tuple[str, ...]:
        """The texts of a list; a single one is a list of one."""
        value = self.find(*names)[1]
        many = value if isinstance(value, list | tuple) else [] if value is None else [value]
        return tuple(one for one in many if isinstance(one, str))

    def counts(self, name: str) -> tuple[int, ...]:
        """The numbers of a list; none where it is absent."""
        value = self.values.get(name)
        if value is None:
            return ()
        if not isinstance(value, list | tuple):
            raise InputError(f"{self.where}: {name}: {shown(value)} is not a list of numbers")
        return tuple(check_count(f"{self.where}: {name}", one) for one in value)

    def section(self, *names: str) -> "Section":
        """A section in it; an empty one where it is absent."""
        name, value = self.find(*names)
        return Section({} if value is None else value, f"{self.where}: {name}")

    def sections(self) -> Iterator[tuple[str, "Section"]]:
        """Those of its values that are sections, in order."""
        for name, value in self.values.items():
            if isinstance(value, Mapping):
                yield name, Section(value, f"{self.where}: {name}")

    def per_group(self, extra_bits: float, *, default: int = -1) -> float:
        """Bits that a weight pays for what its group shares; a group of -1 or 0 is a row, which weighs nothing."""
        group = self.count("group_size", "q_group_size", default=default, least=-1)
        return extra_bits / group if group > 0 else 0.0
