"""Rows of published joules: a file of them, each cell checked."""

import csv
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec

from sim.simulation import Component
from traces.errors import InputError, error_prefix
from traces.files import read_text
from validation.published.latency.rows import LATENCY

JOULES = LATENCY.parent / "joules.csv"


class Metered(StrEnum):
    """What the joules are of."""

    DEVICE = "device"
    WALL = "wall"

    def counts(self, part: Component) -> bool:
        """Whether they are of this part, too."""
        return self is Metered.WALL or part is Component.DEVICE


@dataclass(frozen=True, slots=True)
class JoulesRow:
    """One measurement, and the rate at which it was taken."""

    id: str
    system: str
    model: str
    precision: str
    machine: str
    prompt_len: int
    gen_len: int
    requests: int
    experts: str
    """That the system computes for every token; empty: those that the token uses."""
    tokens_per_s: float
    j_per_token: float
    metered: Metered
    source: str
    notes: str

    def __post_init__(self) -> None:
        for name in ("prompt_len", "gen_len", "requests", "tokens_per_s", "j_per_token"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name}: {getattr(self, name)} is not allowed; it must be above 0")
        if self.experts and not self.experts.isdecimal():
            raise InputError(f"experts: {self.experts!r} is not a number; give one, or nothing")


def read_joules_rows(path: Path) -> list[JoulesRow]:
    """The rows of a file; lines that begin with # are comments. Raises InputError for the first that is wrong."""
    lines = [line for line in read_text(path).splitlines() if line.strip() and line[0] != "#"]
    return [_row(path, at, cells) for at, cells in enumerate(csv.DictReader(lines), 1)]


def _row(path: Path, at: int, cells: dict[str | Any, Any]) -> JoulesRow:
    with error_prefix(f"{path}: row {at}: "):
        try:
            return msgspec.convert(cells, JoulesRow, strict=False)
        except msgspec.ValidationError as error:
            raise InputError(str(error)) from None
