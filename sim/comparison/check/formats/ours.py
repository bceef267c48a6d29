"""What this project writes: traces of its engine, which are measurements, and plans, which say how a run was set."""

from collections.abc import Iterator, Mapping
from typing import Any

from sim.comparison.check.measurement import Measurement, RunSetting, Speed
from sim.schedule import Op
from traces.errors import InputError
from traces.trace import Trace

PROGRAM = "cgopipe"


def of_trace(trace: Trace) -> Iterator[Measurement]:
    """Both phases of a batch. Raises InputError for a trace that was simulated, or of part of a run."""
    said = trace.metadata
    batch, (first, stop) = said.get("batch"), said.get("steps", (0, 0))
    if said.get("origin") == "simulated" or not batch or first != 0:
        raise InputError("the trace is not of a whole batch that ran: give one that `engine run --trace` wrote")
    ends = {one.step: one.end_ns for one in sorted(trace.spans, key=lambda one: one.end_ns) if one.op == Op.HEAD}
    requests = sum(one["num_requests"] for one in batch["micro_batches"])
    prompts = sum(one["prompt_tokens"] for one in batch["micro_batches"])
    policy = {name: value for name, value in said["policy"].items() if name != "num_micro_batches"}
    setting = RunSetting(PROGRAM, said.get("model", ""), schedule=said["schedule"], policy=policy)
    lengths = {"prompt_len": max(1, round(prompts / requests)), "gen_len": batch["gen_len"], "setting": setting}
    prefill_s = (ends[0] - min(one.start_ns for one in trace.spans)) / 1e9
    yield Measurement(Speed.PREFILL, prompts / prefill_s, requests, **lengths)
    if stop > 1:
        yield Measurement(Speed.DECODE, requests * (stop - 1) * 1e9 / (ends[stop - 1] - ends[0]), requests, **lengths)


def setting_of_plan(record: Mapping[str, Any]) -> RunSetting:
    """The schedule and the policy of the plan."""
    policy = {name: value for name, value in record["policy"].items() if name != "num_micro_batches"}
    return RunSetting(PROGRAM, schedule=record["schedule"], policy=policy)
