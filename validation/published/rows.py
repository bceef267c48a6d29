"""Rows of published runs: a file of them, each checked; what each says of its run, and how near predictions must be."""

import csv
import sys
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from traces.errors import InputError
from traces.files import read_text

FOLDER = Path(__file__).parent / "data"
THROUGHPUT = FOLDER / "throughput.csv"

CGOPIPE_BAR = 0.12
"""Largest mean absolute error of cgopipe rows."""

BASELINE_BAR = 0.25
"""Largest mean absolute error of the rows of other systems."""

TIE = 0.02
"""Gap of measured throughputs, as a share of the larger, below which two systems are not told apart: the least noise
that repetitions of one configuration show (2 to 8 %, once 31 %).
"""

RANKING_BAR = 0.95
"""Least share of cells whose systems come out in the published order."""

Cell = tuple[str, str, bool, int]
"""(setting, workload, padded, gen_len): the systems of one cell can be compared."""


Count = Annotated[int, Meta(ge=1)]
Rate = Annotated[float, Meta(gt=0, le=sys.float_info.max)]


@dataclass(frozen=True, slots=True)
class Row:
    """One published run. What the source leaves open is None or empty."""

    setting: str
    schedule: str
    workload: str
    padded: bool
    gen_len: Count
    model: str = ""
    gpu: str = ""
    n_gpu: Count | None = None
    micro_batch_size: Count | None = None
    num_micro_batches: Count | None = None
    requests_finished: Count | None = None
    tokens_per_s: Rate | None = None
    time_s: Rate | None = None
    note: str = ""

    @property
    def cell(self) -> Cell:
        return self.setting, self.workload, self.padded, self.gen_len

    @property
    def run(self) -> tuple[object, ...]:
        """What repetitions of a run have in common."""
        return (*self.cell, self.schedule, self.num_micro_batches)

    def __str__(self) -> str:
        policy = f" {self.micro_batch_size}×{self.num_micro_batches}" if self.num_micro_batches else ""
        padding = "padded" if self.padded else "unpadded"
        return f"{self.setting} {self.schedule}{policy} {self.workload} {padding} gen_len {self.gen_len}"


COLUMNS = tuple(field.name for field in fields(Row))
REQUIRED = tuple(field.name for field in fields(Row) if field.default is MISSING)


def read_rows(path: Path) -> list[Row]:
    """Read a file of runs; lines that begin with # are comments. Raises InputError with the line and the column."""
    columns = f"give a CSV file with the columns {', '.join(COLUMNS)}"
    lines = enumerate(read_text(path).splitlines(), 1)
    kept = [(number, line) for number, line in lines if line.strip() and line[0] != "#"]
    if not kept:
        raise InputError(f"{path}: empty; {columns}")
    table = csv.reader([line for _, line in kept])
    header = [name.strip() for name in next(table)]
    if missing := [name for name in REQUIRED if name not in header]:
        raise InputError(f"{path}: no column {', '.join(missing)}; needed are {', '.join(REQUIRED)}")
    rows = [_row(header, cells, f"{path}: line {number}") for (number, _), cells in zip(kept[1:], table, strict=False)]
    if not rows:
        raise InputError(f"{path}: has a header and no row")
    return rows


def _row(header: list[str], cells: list[str], where: str) -> Row:
    if len(cells) != len(header):
        raise InputError(f"{where}: {len(cells)} cells for {len(header)} columns")
    given: dict[str, Any] = {name: cell.strip() for name, cell in zip(header, cells, strict=True) if cell.strip()}
    if empty := [name for name in REQUIRED if name not in given]:
        raise InputError(f"{where}: {empty[0]} is empty")
    padded = given["padded"].lower()
    if padded not in ("yes", "no"):
        raise InputError(f"{where}: padded: {given['padded']!r} is not allowed; give yes or no")
    try:
        return msgspec.convert(given | {"padded": padded == "yes"}, Row, strict=False)
    except msgspec.ValidationError as error:
        name = str(error).rpartition("$.")[2].rstrip("`")
        wanted = "a number above 0" if name in ("tokens_per_s", "time_s") else "a whole number of at least 1"
        raise InputError(f"{where}: {name}: {given[name]!r} is not allowed; give {wanted}") from None
