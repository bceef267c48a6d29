"""Colours: the same thing has the same one in every picture."""

from collections.abc import Iterable
from functools import cache
from itertools import cycle
from pathlib import Path

from traces.files import read_toml


@cache
def _tables() -> dict[str, dict[str, str]]:
    return read_toml(Path(__file__).with_name("colours.toml"))


def colours(kind: str = "ops") -> dict[str, str]:
    """The colour of each thing of a kind, in the order in which legends name them."""
    return _tables()[kind]


def colours_of(kind: str, names: Iterable[str]) -> dict[str, str]:
    """The colours of these things, of a kind or of none.

    Those without one of their own share the others out in the order of their names.
    """
    known, wanted = _tables().get(kind, {}), sorted(set(names))
    others = cycle(_tables()["others"].values())
    return {name: known[name] if name in known else next(others) for name in wanted}
