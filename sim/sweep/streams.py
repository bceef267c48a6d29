"""Points of a sweep that serve a stream of requests: what each asks for, and the cells of its row."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from itertools import product
from typing import Any

from sim.admission import Prompts, RequestStream, StreamOptions
from sim.comparison import Asked, Served, served_by
from sim.problem import Problem
from sim.schedule import by_name
from sim.sweep.axes import Axis
from traces.errors import InputError

STREAM_SETTINGS = frozenset(one.name for one in fields(StreamOptions))
"""What axes may set of a stream."""

START_COLUMNS = ("requests", "prompts")
"""What a row says first of its stream."""

LATENCIES = ("ttft", "tpot", "e2e")
QUANTILES = ("p50", "p90", "p99")
SERVED_COLUMNS = (
    "prefill_chunk",
    "prompt_batches",
    "block_tokens",
    "throughput_tokens_per_s",
    "steady_tokens_per_s",
    "total_s",
    *(f"{name}_{of}_s" for name in LATENCIES for of in QUANTILES),
    "goodput_requests_per_s",
    "occupancy",
    "bottleneck",
    "energy_j_per_token",
    "gpu_idle",
    "num_steps",
    "num_preempted",
)
"""Results of a row, beside its policy."""


def options_at(base: StreamOptions, settings: Mapping[str, Any]) -> StreamOptions:
    """What a point asks for. Raises InputError for a value that cannot be used."""
    return replace(base, **{name: value for name, value in settings.items() if name in STREAM_SETTINGS})


def all_options(base: StreamOptions, axes: tuple[Axis, ...]) -> Iterator[StreamOptions]:
    """What any point asks for."""
    mine = [axis for axis in axes if STREAM_SETTINGS & set(axis.names)]
    for values in product(*(axis.values for axis in mine)):
        set_by = zip(mine, values, strict=True)
        yield options_at(base, {name: value for axis, value in set_by for name in axis.names})


def check_streams(
    base: StreamOptions | None,
    axes: tuple[Axis, ...],
    schedules: Sequence[str],
    gen_len: int | None,
    *,
    has_prompts: bool,
) -> None:
    """Raise InputError for what no point could be asked, before any work. `has_prompts`: whether all have lengths."""
    if base is None:
        for name in sorted(STREAM_SETTINGS.intersection(name for axis in axes for name in axis.names)):
            raise InputError(f"--axis {name}: says something of a stream of requests: give --requests N too")
        return
    for one in all_options(base, axes):
        one.check_schedules(schedules)
        if isinstance(one.requests, str):
            if has_prompts:
                raise InputError(f"--requests {one.requests}: has the prompts: leave out workload and prompt_len")
            RequestStream.read(one.requests, gen_len)


def files_of(base: StreamOptions, axes: tuple[Axis, ...]) -> dict[str, str]:
    """What the files hold that requests come from, as hashes."""
    return {path: digest for one in all_options(base, axes) for path, digest in one.files().items()}


def places_of(schedule: str) -> tuple[Prompts, ...]:
    """Where a schedule can have prompts; each is a row."""
    return tuple(Prompts) if by_name(schedule).system.mixes else (Prompts.BEFORE,)


def served_cells(
    problem: Problem, options: StreamOptions, asked: Asked, schedule: str, prompts: Prompts, gen_len: int | None
) -> dict[str, Any]:
    """One schedule on the stream with its prompts in one place, as JSON values with the cells of a row among them."""
    try:
        problem, stream = options.stream_of(problem, gen_len)
        (served,) = served_by(problem, stream, options.service, asked, schedule, (prompts,))
    except InputError as error:
        served = Served(schedule, prompts, options.service, None, None, str(error))
    found = served.to_dict()
    gpus = [lane["utilisation"] for name, lane in found["lanes"].items() if name.startswith("GPU")]
    known = {f"{name}_{of}_s": found[f"{name}_s"] and found[f"{name}_s"][of] for name in LATENCIES for of in QUANTILES}
    return {**found, **known, "gpu_idle": 1 - sum(gpus) / len(gpus) if gpus else None}
