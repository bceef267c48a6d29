"""Errors that a user can mend: one line each, shown without a stack trace."""

from collections.abc import Iterable, Mapping
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


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean a or b?` for a misspelt name, or nothing when no known name is near."""
    close = get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else ""
