"""From the tasks that ran to a trace, which says of its run what it takes to predict it, and to what people ask for."""

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from engine.device import EnergyMeter, EnergyUse
from engine.generation.rows import by_length
from engine.lanes import Ran
from engine.model import host_waits
from engine.tasks import HostTime, RunContext
from sim.problem import Batch, in_order
from sim.schedule import Lane, Op
from sim.simulation import structure
from traces.analysis import DEPENDENCY, cause_of
from traces.trace import MEMORY, NONE, Counter, Span, Trace

LIBRARIES = (torch, transformers)

BEGAN_NS = "began_ns"
"""When a trace's first task began, in its metadata: by the host's monotonic clock, which all its processes read."""

History = Sequence[tuple[int, int]]
"""(host clock in ns, bytes) after each change of what a memory holds."""


@dataclass(frozen=True, slots=True)
class Stats:
    """What a run did. Seconds are sums over its batches; peaks are of the whole run, by tier.

    `busy_s` is how long each lane worked. `tokens_per_s` counts generated tokens over prefill and decode. `energy` is
    what was measured of the joules that it took, where that was asked for.
    """

    num_batches: int = 0
    generated_tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    busy_s: dict[str, float] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)
    kernel_attention_calls: int = 0
    own_attention_calls: int = 0
    energy: EnergyUse | None = None

    def __add__(self, other: "Stats") -> "Stats":
        """Of both."""
        busy_s = {lane: self.busy_s.get(lane, 0.0) + other.busy_s.get(lane, 0.0) for lane in self.busy_s | other.busy_s}
        peaks = self.peak_bytes | other.peak_bytes
        return Stats(
            num_batches=self.num_batches + other.num_batches,
            generated_tokens=self.generated_tokens + other.generated_tokens,
            prefill_s=self.prefill_s + other.prefill_s,
            decode_s=self.decode_s + other.decode_s,
            busy_s=busy_s,
            peak_bytes={tier: max(self.peak_bytes.get(tier, 0), other.peak_bytes.get(tier, 0)) for tier in peaks},
            kernel_attention_calls=self.kernel_attention_calls + other.kernel_attention_calls,
            own_attention_calls=self.own_attention_calls + other.own_attention_calls,
            energy=self.energy + other.energy if self.energy and other.energy else self.energy or other.energy,
        )

    @property
    def tokens_per_s(self) -> float:
        seconds = self.prefill_s + self.decode_s
        return self.generated_tokens / seconds if seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON values; those of energy where it was measured."""
        numbers = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "energy"}
        return {**numbers, "tokens_per_s": self.tokens_per_s, **described_energy(self.energy, self.generated_tokens)}


def describe_model(model: PreTrainedModel) -> dict[str, Any]:
    """The model's configuration as JSON values, with the dtype that it has in memory and without where it came from."""
    config: dict[str, Any] = json.loads(model.config.to_json_string(use_diff=False))
    config.pop("_name_or_path", None)
    return {**config, "dtype": str(model.dtype).removeprefix("torch.")}


def describe_run(run: RunContext, ids: list[list[int]]) -> dict[str, Any]:
    """What all batches of a run on these token ids have in common."""
    config, policy, schedule = run.model.config, run.policy.to_dict(), run.schedule.name
    inputs = [schedule, policy, config.to_json_string(), ids, run.options.max_new_tokens]
    return {
        "schedule": schedule,
        "model": config.model_type,
        "model_config": describe_model(run.model),
        "policy": policy,
        "versions": {"python": platform.python_version()} | {one.__name__: one.__version__ for one in LIBRARIES},
        "input_hash": hashlib.sha256(json.dumps(inputs).encode()).hexdigest(),
        "origin": run.device.origin,
        **({} if run.sums is None else {"rank": run.sums.rank.index, "num_ranks": run.sums.rank.count}),
    }


def describe_batch(run: RunContext, prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
    """One batch: its pipeline, the length of each prompt, and the micro-batches as they are padded.

    `streamed_bytes` of each layer come over the link each time it runs in decode; the first `locked_bytes` of what ever
    comes over it lie in page-locked memory.

    The device computes padding and the KV cache holds it; only attention on the host leaves it out.
    """
    lengths, gen_len = [len(prompt) for prompt in prompts], run.options.max_new_tokens
    batch = as_cut(lengths, run.policy.micro_batch_size, gen_len)
    return {
        "device": run.device.facts,
        "steps": [0, gen_len],
        "prompt_tokens": lengths,
        "streamed_bytes": [0 if layer is None else layer.decode_bytes for layer in run.streamed],
        "locked_bytes": run.locked_bytes,
        **structure(run.shape(len(batch.micro_batches)), batch),
    }


def describe_host(run: RunContext, host: HostTime) -> dict[str, Any]:
    """What of the decode of one batch was the host's, and how often it waits for the device in a turn's experts."""
    parts = 1 + (0 < run.policy.experts_on_device < 1)
    waits = parts * host_waits(run.device.torch_device, run.model.dtype)
    return {"host": {**host.to_dict(), "waits_for_experts_per_turn": waits}}


def described_energy(used: EnergyUse | None, tokens: int) -> dict[str, Any]:
    """What so many generated tokens took, as JSON values; nothing where it was not measured."""
    return {} if used is None else {"energy": used.to_dict(), "energy_j_per_token": used.per_token(tokens)}


def measured_energy(meter: EnergyMeter, ran: Sequence[Ran]) -> tuple[EnergyUse, list[Counter]]:
    """What a batch took in prefill and in decode, and what components drew, by the host's clock."""
    start_ns, end_ns = min(one.start.time_ns for one in ran), max(one.end.time_ns for one in ran)
    heads = [one.end.time_ns for one in ran if one.task.op is Op.HEAD and one.task.step == 0]
    turn_ns = max(heads, default=end_ns)
    used = meter.use({"prefill": (start_ns, turn_ns), "decode": (turn_ns, end_ns)})
    power = meter.power(start_ns, end_ns)
    meter.forget(end_ns)
    return used, power


def as_cut(prompt_tokens: Sequence[int], micro_batch_size: int, gen_len: int) -> Batch:
    """The batch as the engine cuts it: prompts of similar length together, each micro-batch padded to its longest."""
    return Batch(in_order([prompt_tokens[i] for i in by_length(prompt_tokens)], micro_batch_size), 0, gen_len)


def make_trace(
    ran: Sequence[Ran],
    metadata: dict[str, Any],
    memory: Mapping[str, History],
    others: Sequence[Counter] = (),
    rank: int = 0,
) -> Trace:
    """The trace of one batch: the tasks' own keys, in order of time, from 0 ns, and what each tier held.

    `memory` has the histories of the tiers `device`, `pinned` and `host`, the last without what is pinned. The metadata
    says when that was by the host's clock, and by how much the device's was corrected (`clock_shift_ns`), if it was.
    Counters of `others` are by the host's clock. `rank` is that of the device.
    """
    times, moved_ns = _times_ns(ran)
    metadata = {**metadata, **({"clock_shift_ns": moved_ns} if moved_ns else {})}
    ends_ns = {id_: end_ns for id_, (_, end_ns) in times.items()}
    start_ns = min((start for start, _ in times.values()), default=0)
    metadata |= {BEGAN_NS: start_ns}
    before: dict[Lane, int] = {}
    spans = []
    for one in sorted(ran, key=lambda one: one.task.id):
        task = one.task
        previous = before.get(task.lane, NONE)
        cause = cause_of(times[task.id][0], task.deps, previous, ends_ns)
        before[task.lane] = task.id
        first, last = (time - start_ns for time in times[task.id])
        what = (one.num_bytes, 0, "", "" if cause in (previous, NONE) else DEPENDENCY, cause)
        spans.append(Span(task.id, task.op.value, task.lane.kind.value, *task.key[1:], first, last, *what))
    counted = [one._replace(time_ns=max(0, one.time_ns - start_ns)) for one in others]
    return Trace(metadata, spans, [*_memory(memory, start_ns, rank), *counted])


def _times_ns(ran: Sequence[Ran]) -> tuple[dict[int, tuple[int, int]], int]:
    """When each task began and ended, and by how much one was moved at most.

    What the clock of a device is unsure of must not make a lane do two things at once.
    """
    times: dict[int, tuple[int, int]] = {}
    before: dict[Lane, int] = {}
    moved_ns = 0
    for one in sorted(ran, key=lambda one: one.task.id):
        start_ns, end_ns = one.start.time_ns, one.end.time_ns
        if one.start.of_device and one.end.of_device:
            start_ns = max(start_ns, before.get(one.task.lane, start_ns))
            end_ns = max(start_ns, end_ns)
            moved_ns = max(moved_ns, start_ns - one.start.time_ns, end_ns - one.end.time_ns)
        times[one.task.id] = start_ns, end_ns
        before[one.task.lane] = end_ns
    return times, moved_ns


def _memory(histories: Mapping[str, History], start_ns: int, rank: int) -> list[Counter]:
    """Samples of each tier from the first span on; pinned memory is part of the host's, as in the memory plan."""
    changes = sorted((ns, tier, num_bytes) for tier, history in histories.items() for ns, num_bytes in history)
    held = dict.fromkeys(histories, 0)
    samples: dict[tuple[int, int], dict[str, float]] = {}
    for ns, tier, num_bytes in changes:
        held[tier] = num_bytes
        time_ns = max(0, ns - start_ns)
        if tier == "device":
            samples[time_ns, rank] = {"device": held["device"]}
        else:
            samples[time_ns, NONE] = {"host": held["host"] + held["pinned"], "pinned": held["pinned"]}
    return [Counter(MEMORY, time_ns, values, of) for (time_ns, of), values in samples.items()]


def peak_bytes(traces: Sequence[Trace]) -> dict[str, int]:
    """The most that each tier held in any of the traces."""
    peaks: dict[str, int] = {}
    for counter in (counter for trace in traces for counter in trace.counters if counter.name == MEMORY):
        for tier, value in counter.values.items():
            peaks[tier] = max(peaks.get(tier, 0), round(value))
    return peaks


def phases_s(trace: Trace) -> tuple[float, float]:
    """Seconds until the first token of every micro-batch is there, and seconds after that."""
    heads = [span.end_ns for span in trace.spans if span.step == 0 and span.op == Op.HEAD]
    turn = max(heads, default=trace.end_ns)
    return (turn - trace.start_ns) / 1e9, (trace.end_ns - turn) / 1e9
