"""Errors that a user can mend: one line each, shown without a stack trace."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

MOST = 10**12
"""The most that a whole number of the user's may be, where nothing narrower is said: nothing real is counted so far."""

SHOWN = 80
"""Characters of a value that a message repeats at most."""


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one line that says what was given, what is allowed, and how to mend it.
    Command lines print it and exit with code 2.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__("".join(one if one.isprintable() else ascii(one)[1:-1] for one in message))


def shown(value: object) -> str:
    """A value as a message repeats it: of a long one how it begins."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply, or a number of thousands of digits
        text = f"this {type(value).__name__}"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def check_keys(
    table: Mapping[str, Any], allowed: Iterable[str], required: Iterable[str], field: str = "", hint: str = ""
) -> None:
    """Refuse a key that is unknown (naming the nearest) or missing. `field` is the dotted name of the table."""
    allowed, dot = list(allowed), f"{field}." if field else ""
    for key in table:
        if key not in allowed:
            name = str(key)[:SHOWN]
            raise InputError(f"{dot}{name}: unknown field{nearest(name, allowed)}; allowed: {', '.join(allowed)}")
    for key in required:
        if key not in table:
            raise InputError(f"{dot}{key}: missing{'; ' + hint if hint else ''}")


def nearest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """Return `; did you mean a or b?` for a misspelt name, or nothing when no known name is near."""
    close = get_close_matches(name[:SHOWN], list(known), n=3, cutoff=cutoff)
    return f"; did you mean {' or '.join(close)}?" if close else ""


@contextmanager
def error_prefix(prefix: str) -> Iterator[None]:
    """Say in front of the InputErrors of a block where they were: `machine.toml: `, or `link.` before `h2d: ...`."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{prefix}{error}") from None


def check_count(name: str, value: object, least: int = 1, most: int = MOST) -> int:
    """Refuse what is no whole number from `least` to `most`; returns what is one."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name}: {shown(value)} is not allowed; give a whole number of at least {least}")
    if value > most:
        raise InputError(f"{name}: {shown(value)} is not allowed; give at most {most:,}")
    return value


def check_range(name: str, value: object, least: float, most: float, what: str = "a number") -> float:
    """Refuse what is no number from `least` to `most`; `what` says what it is: "a width in bits"."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise InputError(f"{name}: {shown(value)} is not allowed; give {what} from {least:g} to {most:g}")
    return value


def check_share(name: str, value: object) -> float:
    """Refuse what is no number from 0 to 1."""
    return check_range(name, value, 0, 1, "a share")


def check_flag(name: str, value: object) -> bool:
    """Refuse what is neither true nor false."""
    if not isinstance(value, bool):
        raise InputError(f"{name}: {shown(value)} is not allowed; give true or false")
    return value


def check_text(name: str, value: object) -> str:
    """Refuse what is no text."""
    if not isinstance(value, str):
        raise InputError(f"{name}: {shown(value)} is not a text")
    return value


def check_choice(name: str, value: object, allowed: Iterable[str]) -> str:
    """Refuse what is none of `allowed`, naming the nearest."""
    known = [str(one) for one in allowed]
    if value not in known:
        near = nearest(value, known) if isinstance(value, str) else ""
        raise InputError(f"{name}: {shown(value)} is not allowed; give {' or '.join(known)}{near}")
    return str(value)
