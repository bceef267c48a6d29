"""A command line of another program: written as a shell takes it, of options that the program is known to have."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from traces.files import read_toml


class ShellExpression(str):
    """A value that the shell works out where the command runs, such as the number of its cores."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class ShellCommand:
    """One command. `known_as` is what its options are listed under, where that is not what it is called."""

    program: str
    options: Mapping[str, object]
    """By name; True stands for an option without a value, None and False for one that is left out."""
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    known_as: str = ""

    def __str__(self) -> str:
        return " ".join(self._pieces())

    def lines(self, width: int) -> list[str]:
        """The same over several lines, which a shell takes as one; what is longer than the width stands alone."""
        (first, *others), found = self._pieces(), list[str]()
        line = first
        for piece in others:
            if len(line) + len(piece) + 3 > width:
                found.append(f"{line} \\")
                line = f"    {piece}"
            else:
                line = f"{line} {piece}"
        return [*found, line]

    def _pieces(self) -> list[str]:
        before = [f"{name}={_quoted(value)}" for name, value in self.environment.items()]
        told = {name: self.options[name] for name in self.flags}
        after = [name if value is True else f"{name} {_quoted(value)}" for name, value in told.items()]
        return [" ".join([*before, self.program, *map(_quoted, self.arguments)]), *after]

    @property
    def flags(self) -> tuple[str, ...]:
        """The names of all options that are told."""
        return tuple(name for name, value in self.options.items() if value is not None and value is not False)


def _quoted(value: object) -> str:
    return f'"$({value})"' if isinstance(value, ShellExpression) else shlex.quote(str(value))


@dataclass(frozen=True, slots=True)
class KnownFlags:
    """Options of a program in one release of it."""

    version: str
    source: str
    flags: tuple[str, ...]


@cache
def known_flags() -> dict[str, KnownFlags]:
    """By program, as `flags.toml` has them."""
    table: dict[str, Any] = read_toml(Path(__file__).with_name("flags.toml"))
    return {name: KnownFlags(one["version"], one["source"], tuple(one["flags"])) for name, one in table.items()}


@cache
def widths() -> dict[str, dict[str, float]]:
    """Bits of a number by its name, for each kind of them, as `widths.toml` has them."""
    return read_toml(Path(__file__).with_name("widths.toml"))


def name_of_width(kind: str, bits: float) -> tuple[str, float]:
    """What numbers of so many bits are called, and how many bits these have: the narrowest name that is wide enough.

    The widest where none is.
    """
    named = sorted(widths()[kind].items(), key=lambda one: one[1])
    return next((one for one in named if one[1] >= bits), named[-1])
