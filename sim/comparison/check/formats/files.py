"""A file of any program that is known: JSON, an object a line, or CSV; told apart by the fields of its records."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sim.comparison.check.formats.llama_bench import of_llama_bench
from sim.comparison.check.formats.ours import of_trace, setting_of_plan
from sim.comparison.check.formats.serving import of_offline_run, of_served_requests, of_timed_batch
from sim.comparison.check.measurement import Measurement, RunSetting
from traces.errors import InputError, error_prefix
from traces.files import read_text, read_trace, shown_path

Record = Mapping[str, Any]

PLANNED = frozenset({"schedule", "policy", "explanation"})
"""Fields of what `plan --json` writes."""

PROGRAMS: tuple[tuple[frozenset[str], str, Callable[[Record], Iterator[Measurement]]], ...] = (
    (frozenset({"avg_ts", "n_prompt", "n_gen"}), "llama-bench -o json, jsonl or csv", of_llama_bench),
    (
        frozenset({"duration", "completed", "total_input_tokens", "output_throughput"}),
        "vllm bench serve --save-result, SGLang's bench_serving --output-file",
        of_served_requests,
    ),
    (
        frozenset({"total_latency", "successful_requests", "total_input_tokens"}),
        "SGLang's bench_offline_throughput --result-filename",
        of_offline_run,
    ),
    (
        frozenset({"elapsed_time", "num_requests", "total_num_tokens"}),
        "vllm bench throughput --output-json",
        of_timed_batch,
    ),
)
"""Fields that only this program's records have together, what the file is called, and what reads a record."""


def read_measurements(path: Path) -> list[Measurement]:
    """All that a file says. Raises InputError, with what is known, for a file of another kind."""
    if path.name.endswith(".gz"):
        return list(of_trace(read_trace(path)))
    with error_prefix(f"{shown_path(path)}: "):
        found = [one for record in _records(read_text(path)) for one in _measurements(record)]
        if not found:
            raise InputError("holds no measurement")
        return found


def read_run_setting(path: Path) -> RunSetting:
    """How a plan sets its run. Raises InputError for a file that is no plan."""
    with error_prefix(f"{shown_path(path)}: "):
        (record, *others) = _records(read_text(path))
        if others or not record.keys() >= PLANNED:
            raise InputError("holds measurements of its own, or is no plan: leave out --measured, or give plan --json")
        return setting_of_plan(record)


def _measurements(record: Record) -> Iterator[Measurement]:
    if record.keys() >= PLANNED:
        raise InputError("is a plan, which says what is predicted: give --measured beside it")
    for fields, _, read in PROGRAMS:
        if fields <= record.keys():
            return read(record)
    known = "; ".join([*(name for _, name, _ in PROGRAMS), "a trace of the engine (.json.gz)"])
    raise InputError(f"is not the result of a program that is known; known: {known}")


def _records(text: str) -> Sequence[Record]:
    """The objects of a JSON document, of lines of JSON, or of CSV with a heading."""
    text = text.strip()
    if not text:
        raise InputError("is empty")
    if text[0] not in "[{":
        return list(csv.DictReader(text.splitlines()))
    try:
        whole = json.loads(text)
    except ValueError:
        whole = [_line(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    records = whole if isinstance(whole, list) else [whole]
    if not records or not all(isinstance(one, dict) for one in records):
        raise InputError("holds something else than JSON objects")
    return records


def _line(number: int, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"line {number} is not JSON: {error}") from None
