"""Stage 6: the engine's own times of its tasks against those of a profiler, which on a GPU are CUPTI's."""

import statistics
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from torch._C._profiler import _ExperimentalConfig
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile

import engine
from sim.problem import Policy
from sim.schedule import by_name
from traces.analysis import align
from traces.files import read_trace, write_trace
from traces.trace import Trace, lane_name
from validation.gpu.piece import Piece
from validation.gpu.random_models import random_prompts
from validation.gpu.scale import LOCKED
from validation.gpu.workbench import Workbench

SCHEDULES = ("cgopipe", "flexgen")
TRACE = "profiled"

MOVES = ("Memcpy", "Memset", "cgopipe::")
"""How the names of what is no kernel begin: copies, and the engine's own ranges."""


def time_pieces(bench: Workbench) -> Iterator[Piece]:
    """One profiled run of each of two schedules on the first model."""
    for schedule in SCHEDULES:
        yield Piece(schedule, bench.scale.seconds["times"], partial(_profiled, bench, schedule))


def _profiled(bench: Workbench, schedule: str) -> dict[str, Any]:
    scale, chosen = bench.scale, by_name(schedule)
    name = next(iter(scale.models))
    model = bench.model(name)
    policy = Policy.usual(chosen, scale.requests, scale.micro_batch_size, **LOCKED)
    prompts = random_prompts(model.config.vocab_size, scale.requests, scale.prompt_tokens)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.is_cuda else [])]
    with bench.device(bench.spec(name).device_bytes) as device:
        everywhere = _ExperimentalConfig(profile_all_threads=True)
        with profile(activities=activities, experimental_config=everywhere) as profiler:
            what = (model, prompts, chosen, policy)
            ours = engine.run(*what, max_new_tokens=scale.profiled_steps, device=device, do_sample=False).trace
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "profile.json.gz")
        profiler.export_chrome_trace(str(file))
        theirs = read_trace(file)
    for whose, trace in (("ours", ours), ("profiler", theirs)):
        bench.record.keep(f"{TRACE}-{schedule}-{whose}.json.gz", partial(write_trace, trace))
    kernels = {"kernels_s": _kernels_s(profiler)} if bench.is_cuda else {}
    return {"clock": "CUPTI" if bench.is_cuda else "host ranges", **kernels, **compared_times(ours, theirs)}


def _kernels_s(profiler: profile) -> float:
    """How long kernels ran in all, one after another: what of the GPU lane's time is more was the host's."""
    found = profiler.key_averages()
    own = (one for one in found if one.device_type == DeviceType.CUDA and not one.key.startswith(MOVES))
    return float(sum(one.self_device_time_total for one in own)) / 1e6


def compared_times(ours: Trace, theirs: Trace) -> dict[str, Any]:
    """By lane: how long tasks took in all by both clocks, and how far one task's two times lie apart (median)."""
    aligned = align(ours, theirs)
    lanes = {}
    for lane in ours.lanes():
        pairs = [(a.duration_ns, b.duration_ns) for a, b in aligned.pairs if (a.lane, a.rank) == lane]
        starts = [b.start_ns - a.start_ns for a, b in aligned.pairs if (a.lane, a.rank) == lane]
        if pairs:
            own_ns, other_ns = (sum(column) for column in zip(*pairs, strict=True))
            lanes[lane_name(lane)] = {
                "tasks": len(pairs),
                "ours_s": own_ns / 1e9,
                "profiler_s": other_ns / 1e9,
                "median_apart_s": statistics.median(abs(a - b) for a, b in pairs) / 1e9,
                "median_start_apart_s": statistics.median(starts) / 1e9,
            }
    return {"lanes": lanes, "only_ours": len(aligned.only_a), "only_profiler": len(aligned.only_b)}
