"""Stage 4: every schedule run on the device; what the simulator says of it is written down before."""

import time
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from typing import Any

import engine
from engine.generation import BatchDone, stats_of
from sim.cost import Setup
from sim.simulation import predict
from traces.files import write_trace
from traces.trace import Trace, lane_name
from validation.campaign import Case
from validation.gpu.piece import SAID, Piece
from validation.gpu.record import NotReadyError
from validation.gpu.workbench import Workbench

PREDICTIONS = "predictions"
"""The stage's pieces that run nothing are called so, with the model."""

WARM_UP = 1
"""Batches before the one that counts: in them libraries load their kernels, and host memory gets its pages."""


def run_pieces(bench: Workbench) -> Iterator[Piece]:
    """Predictions of all runs, then the runs: each schedule once for each model, then once more."""
    seconds = bench.scale.seconds["runs"]
    for name in bench.scale.models:
        yield Piece(f"{PREDICTIONS}, {name}", seconds / 4, partial(predict_cases, bench, name))
    for repeat in range(bench.scale.repeats):
        for name in bench.scale.models:
            for case in bench.cases(name):
                yield Piece(f"{case.name}.{repeat}", seconds, partial(run_case, bench, case, repeat))


def predicted(setup: Setup) -> dict[str, Any]:
    """What the simulator says of a run: times, lanes, and the memory plan."""
    found = predict(setup)
    return {
        "tokens_per_s": found.throughput_tokens_per_s,
        "prefill_s": found.prefill_s,
        "decode_s": found.decode_s,
        "bottleneck": found.bottleneck,
        "busy_s": {name: lane.busy_s for name, lane in found.lanes.items()},
        "energy": None if found.energy is None else found.energy.to_dict(),
        "generated_tokens": setup.batch.generated_tokens,
        "plan_bytes": setup.memory.peak_bytes(),
        "shortages": [str(one) for one in setup.shortages],
    }


def lane_rates(trace: Trace) -> dict[str, dict[str, float]]:
    """Of each lane the share of the run's time that it was busy, and the bytes that its tasks say they moved."""
    moved: defaultdict[tuple[str, int], int] = defaultdict(int)
    for span in trace.spans:
        moved[span.lane, span.rank] += span.bytes
    return {
        lane_name(lane): {"busy": busy_ns / trace.makespan_ns, "busy_s": busy_ns / 1e9, "bytes": moved[lane]}
        for lane, busy_ns in trace.busy_ns().items()
    }


def run_on_bench(bench: Workbench, case: Case, model: Any, device_bytes: int) -> tuple[Trace, dict[str, Any]]:
    """The last batch of a case that is run for more than one: its trace, and what there is to say of it.

    `set_up_s` is what the run took beyond its tasks, `cores` how many worked for it on average.
    """
    done: list[BatchDone] = []
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    with bench.device(device_bytes) as device:
        what = (model, (WARM_UP + 1) * case.prompts(model.config.vocab_size), case.chosen_schedule, case.policy)
        given = (case.micro_batch_size, case.gen_len, device)
        result = engine.run(*what, *given, on_batch=done.append, do_sample=False, energy=True)
    took_s, took_cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
    trace = done[-1].trace
    return trace, {
        **stats_of(done[-1:], result.stats.peak_bytes).to_dict(),
        "first_batch": stats_of(done[:1], result.stats.peak_bytes).to_dict(),
        "lanes": lane_rates(trace),
        "set_up_s": took_s - sum(one.trace.makespan_ns for one in done) / 1e9,
        "cores": took_cpu_s / took_s,
        "reserved_bytes": trace.metadata["device"].get("peak_reserved_bytes"),
        "device": trace.metadata["device"],
        "host": trace.metadata["host"],
        "input_hash": trace.metadata["input_hash"],
    }


def predict_cases(bench: Workbench, name: str) -> dict[str, Any]:
    """By case. Written down before any of them is run."""
    return {case.name: predicted(bench.setup(case)) for case in bench.cases(name)}


def run_case(bench: Workbench, case: Case, repeat: int) -> dict[str, Any]:
    """One run on the device, its trace kept. Raises NotReadyError if it is not predicted yet."""
    said = bench.record.results("runs").get(f"{PREDICTIONS}, {case.model}")
    if said is None:
        raise NotReadyError("it is not predicted yet, so it is not run")
    if said[case.name]["shortages"]:
        return {SAID: f"does not fit: {'; '.join(said[case.name]['shortages'])}"}
    trace, found = run_on_bench(bench, case, bench.model(case.model), bench.spec(case.model).device_bytes)
    kept = bench.record.keep(f"{case.name}.{repeat}.json.gz", partial(write_trace, trace))
    return {**found, "trace_kept": kept}
