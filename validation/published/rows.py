"""Rows of published runs: a file of them, each checked; what each says of its run, and how near predictions must be."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from traces.errors import InputError

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

COLUMNS = (
    "setting",
    "schedule",
    "model",
    "gpu",
    "n_gpu",
    "workload",
    "padded",
    "gen_len",
    "micro_batch_size",
    "num_micro_batches",
    "requests_finished",
    "tokens_per_s",
    "time_s",
    "note",
)
REQUIRED = ("setting", "schedule", "workload", "padded", "gen_len")

Cell = tuple[str, str, bool, int]
"""(setting, workload, padded, gen_len): the systems of one cell can be compared."""


@dataclass(frozen=True, slots=True)
class Row:
    """One published run. What the source leaves open is None or empty."""

    setting: str
    schedule: str
    workload: str
    padded: bool
    gen_len: int
    model: str = ""
    gpu: str = ""
    n_gpu: int | None = None
    micro_batch_size: int | None = None
    num_micro_batches: int | None = None
    requests_finished: int | None = None
    tokens_per_s: float | None = None
    time_s: float | None = None
    note: str = ""

    @property
    def cell(self) -> Cell:
        return self.setting, self.workload, self.padded, self.gen_len

    @property
    def is_ablation(self) -> bool:
        """A policy of another system, tried on purpose: it takes no part in comparing systems."""
        return "ablation" in self.note

    def __str__(self) -> str:
        policy = f" {self.micro_batch_size}×{self.num_micro_batches}" if self.num_micro_batches else ""
        padding = "padded" if self.padded else "unpadded"
        return f"{self.setting} {self.schedule}{policy} {self.workload} {padding} gen_len {self.gen_len}"


def read_rows(path: Path) -> list[Row]:
    """Read a file of runs; lines that begin with # are comments. Raises InputError with the line and the column."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a text file; give a CSV file with the columns {', '.join(COLUMNS)}") from None
    kept = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip() and line[0] != "#"]
    if not kept:
        raise InputError(f"{path}: empty; give a CSV file with the columns {', '.join(COLUMNS)}")
    table = csv.reader([line for _, line in kept])
    header = [name.strip() for name in next(table)]
    _check_header(path, header)
    rows = []
    for (number, _), cells in zip(kept[1:], table, strict=False):
        where = f"{path}: line {number}"
        if len(cells) != len(header):
            raise InputError(f"{where}: {len(cells)} cells for {len(header)} columns")
        rows.append(_row({name: cell.strip() for name, cell in zip(header, cells, strict=True)}, where))
    if not rows:
        raise InputError(f"{path}: has a header and no row")
    return rows


def _check_header(path: Path, header: list[str]) -> None:
    missing = [name for name in REQUIRED if name not in header]
    if missing:
        raise InputError(f"{path}: no column {', '.join(missing)}; needed are {', '.join(REQUIRED)}")


def _row(cells: Mapping[str, str], where: str) -> Row:
    for name in REQUIRED:
        if not cells[name]:
            raise InputError(f"{where}: {name} is empty")
    padded = cells["padded"].lower()
    if padded not in ("yes", "no"):
        raise InputError(f"{where}: padded: {cells['padded']!r} is not allowed; give yes or no")
    return Row(
        setting=cells["setting"],
        schedule=cells["schedule"],
        workload=cells["workload"],
        padded=padded == "yes",
        gen_len=_count(cells, "gen_len", where) or 0,
        model=cells.get("model", ""),
        gpu=cells.get("gpu", ""),
        n_gpu=_count(cells, "n_gpu", where),
        micro_batch_size=_count(cells, "micro_batch_size", where),
        num_micro_batches=_count(cells, "num_micro_batches", where),
        requests_finished=_count(cells, "requests_finished", where),
        tokens_per_s=_positive(cells, "tokens_per_s", where),
        time_s=_positive(cells, "time_s", where),
        note=cells.get("note", ""),
    )


def _count(cells: Mapping[str, str], name: str, where: str) -> int | None:
    text = cells.get(name, "")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if value < 1 or value != int(value):
        raise InputError(f"{where}: {name}: {text!r} is not allowed; give a whole number of at least 1, or nothing")
    return int(value)


def _positive(cells: Mapping[str, str], name: str, where: str) -> float | None:
    text = cells.get(name, "")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise InputError(f"{where}: {name}: {text!r} is not allowed; give a number above 0, or nothing")
    return value
