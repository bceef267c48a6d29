"""Numbers of records, which CSV holds as text."""

from collections.abc import Mapping
from typing import Any

from traces.errors import InputError, shown


def number(record: Mapping[str, Any], name: str, default: float | None = None) -> float:
    """A field as a number. Raises InputError where it is none, or missing and without a default."""
    value = record.get(name)
    if value in (None, "") and default is not None:
        return default
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise InputError(f"{name}: {shown(value)} is not a number") from None


def count(record: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """A field as a whole number. Raises InputError as `number`."""
    return round(number(record, name, default))


def flag(record: Mapping[str, Any], name: str) -> bool | None:
    """A field as a truth; None where it is not there."""
    value = record.get(name)
    return None if value in (None, "") else str(value).lower() in ("1", "true")
