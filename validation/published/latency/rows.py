"""Rows of published rates and latencies: a file of them, each cell checked; all bad rows are told at once."""

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from traces.errors import InputError, nearest
from traces.files import read_text

COLUMNS = (
    *("id", "system", "model", "precision", "gpu", "n_gpu", "cpu", "dram_gb", "link", "prompt_len", "gen_len"),
    *("micro_batch", "n_micro_or_batches", "policy", "placement", "machine", "metric", "value", "unit"),
    *("source", "notes"),
)
REQUIRED = ("system", "model", "metric")

LATENCY = Path(__file__).parent / "data" / "latency.csv"


class Metric(StrEnum):
    """What was measured."""

    PREFILL = "prefill throughput"
    DECODE = "decode throughput"
    THROUGHPUT = "throughput"
    TOKEN = "seconds per token"

    @property
    def in_seconds(self) -> bool:
        """Whether less of it is better."""
        return self is Metric.TOKEN


OTHER_NAMES = {
    "prefill": Metric.PREFILL,
    "decode": Metric.DECODE,
    "per-token latency": Metric.TOKEN,
    "time per token": Metric.TOKEN,
}
UNITS: dict[bool, dict[str, float]] = {
    False: {"tok/s": 1.0, "tokens/s": 1.0, "": 1.0},
    True: {"s": 1.0, "ms": 1e-3, "": 1.0, "s/token": 1.0},
}
"""Of a time and of a rate, what one of each unit is in the first one."""


@dataclass(frozen=True, slots=True)
class LatencyRow:
    """One measurement, or the question for one. What the source leaves open is None or empty."""

    number: int
    """Its place among the rows of its file, from 1 on."""
    name: str
    system: str
    model: str
    metric: Metric
    precision: str = ""
    gpu: str = ""
    num_gpus: int = 1
    cpu: str = ""
    prompt_len: int | None = None
    dataset: str = ""
    gen_len: int | None = None
    num_requests: int = 1
    policy: str = ""
    placement: str = ""
    machine: str = ""
    value: float | None = None
    """In tokens/s or seconds."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be read, and why."""

    number: int
    reason: str


def read_latency_rows(path: Path) -> tuple[list[LatencyRow], list[BadRow]]:
    """The rows of a file, and those that cannot be read; lines that begin with # are comments. Raises InputError."""
    columns = f"give a CSV file with the columns {', '.join(COLUMNS)}"
    lines = [line for line in read_text(path).splitlines() if line.strip() and line[0] != "#"]
    header = [name.strip() for name in next(csv.reader(lines), [])]
    if missing := [name for name in REQUIRED if name not in header]:
        raise InputError(f"{path}: no column {', '.join(missing)}; {columns}")
    if unknown := [name for name in header if name not in COLUMNS]:
        raise InputError(f"{path}: unknown column {unknown[0]!r}{nearest(unknown[0], COLUMNS)}; {columns}")
    rows, bad = list[LatencyRow](), list[BadRow]()
    for number, cells in enumerate(csv.reader(lines[1:]), 1):
        try:
            rows.append(_row(number, header, cells))
        except InputError as error:
            bad.append(BadRow(number, str(error)))
    if not rows and not bad:
        raise InputError(f"{path}: has a header and no row")
    return rows, bad


def _row(number: int, header: list[str], cells: list[str]) -> LatencyRow:
    if len(cells) != len(header):
        raise InputError(f"{len(cells)} cells for {len(header)} columns")
    given = {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
    if empty := [name for name in REQUIRED if not given[name]]:
        raise InputError(f"{empty[0]} is empty")
    metric, tokens = _metric(given["metric"])
    prompts = given.get("prompt_len", "")
    has_length = bool(re.match(r"\d", prompts))
    prompt_len = _count("prompt_len", prompts) if has_length else None
    gen_len = _count("gen_len", given.get("gen_len", ""))
    micro_batch, batches = (_count(name, given.get(name, "")) or 1 for name in ("micro_batch", "n_micro_or_batches"))
    return LatencyRow(
        number,
        given.get("id") or f"row {number}",
        given["system"],
        given["model"],
        metric,
        prompt_len=prompt_len or (tokens if metric is Metric.PREFILL else 1 if tokens else None),
        dataset="" if has_length else prompts,
        gen_len=gen_len or (tokens if metric is Metric.DECODE else None),
        num_gpus=_count("n_gpu", given.get("n_gpu", "")) or 1,
        num_requests=micro_batch * batches,
        value=_value(metric, given),
        **{name: given.get(name, "") for name in ("precision", "gpu", "cpu", "policy", "placement", "machine")},
    )


def _metric(text: str) -> tuple[Metric, int | None]:
    """What was measured, and of how many tokens, where it is llama-bench's pp512 or tg64."""
    words, _, test = text.lower().partition(" pp") if " pp" in text else text.lower().partition(" tg")
    found = {**{str(one): one for one in Metric}, **OTHER_NAMES}.get(words.strip())
    if found is None or not (test.isdecimal() or not test):
        raise InputError(f"metric: {text!r} is not known{nearest(words, Metric)}; give {', '.join(Metric)}")
    return found, int(test) if test else None


def _count(name: str, text: str) -> int | None:
    """A whole number, of which K stands for 1024; None where there is none."""
    if not text:
        return None
    number = re.fullmatch(r"(\d+)\s*([kK]?)", text)
    if number is None or int(number[1]) < 1:
        raise InputError(f"{name}: {text!r} is not allowed; give a whole number of at least 1, such as 512 or 1K")
    return int(number[1]) * (1024 if number[2] else 1)


def _value(metric: Metric, given: Mapping[str, str]) -> float | None:
    text, unit = given.get("value", ""), given.get("unit", "")
    units = UNITS[metric.in_seconds]
    if unit not in units:
        raise InputError(f"unit: {unit!r} is not one of {metric}; give {', '.join(filter(None, units))}")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise InputError(f"value: {text!r} is not allowed; give a number above 0, or nothing")
    return value * units[unit]


def is_latency_file(path: Path) -> bool:
    """Whether a file's header has what only these rows have."""
    return any("metric" in line.split(",") for line in _first_lines(path))


def _first_lines(path: Path) -> Iterator[str]:
    """The header, if it can be read."""
    try:
        lines = read_text(path).splitlines()
    except InputError:
        return
    yield from [line.replace(" ", "") for line in lines if line.strip() and line[0] != "#"][:1]
