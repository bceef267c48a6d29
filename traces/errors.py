"""Errors that a user can mend: one line each, shown without a stack trace."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one line that says what was given, what is allowed, and how to mend it.
    Command lines print it and exit with code 2.
    """


def check_keys(
    table: Mapping[str, Any], allowed: Iterable[str], required: Iterable[str], field: str = "", hint: str = ""
) -> None:
    """Refuse a key that is unknown (naming the nearest) or missing. `field` is the dotted name of the table."""
    allowed, dot = list(allowed), f"{field}." if field else ""
    for key in table:
        if key not in allowed:
            raise InputError(f"{dot}{key}: unknown field{nearest(str(key), allowed)}; allowed: {', '.join(allowed)}")
    for key in required:
        if key not in table:
            raise InputError(f"{dot}{key}: missing{'; ' + hint if hint else ''}")


def nearest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """Return `; did you mean a or b?` for a misspelt name, or nothing when no known name is near."""
    close = get_close_matches(name, list(known), n=3, cutoff=cutoff)
    return f"; did you mean {' or '.join(close)}?" if close else ""


@contextmanager
def error_prefix(prefix: str) -> Iterator[None]:
    """Say in front of the InputErrors of a block where they were: `machine.toml: `, or `link.` before `h2d: ...`."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{prefix}{error}") from None


def check_count(name: str, value: object, least: int = 1) -> int:
    """Refuse what is no whole number of at least `least`; returns what is one."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name}: {value!r} is not allowed; give a whole number of at least {least}")
    return value


def check_range(name: str, value: object, least: float, most: float, what: str = "a number") -> float:
    """Refuse what is no number from `least` to `most`; `what` says what it is: "a width in bits"."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise InputError(f"{name}: {value!r} is not allowed; give {what} from {least:g} to {most:g}")
    return value


def check_share(name: str, value: object) -> float:
    """Refuse what is no number from 0 to 1."""
    return check_range(name, value, 0, 1, "a share")


def check_flag(name: str, value: object) -> bool:
    """Refuse what is neither true nor false."""
    if not isinstance(value, bool):
        raise InputError(f"{name}: {value!r} is not allowed; give true or false")
    return value


def check_text(name: str, value: object) -> str:
    """Refuse what is no text."""
    if not isinstance(value, str):
        raise InputError(f"{name}: {value!r} is not a text")
    return value


def check_choice(name: str, value: object, allowed: Iterable[str]) -> str:
    """Refuse what is none of `allowed`, naming the nearest."""
    known = [str(one) for one in allowed]
    if value not in known:
        raise InputError(f"{name}: {value!r} is not allowed; give {' or '.join(known)}{nearest(str(value), known)}")
    return str(value)
