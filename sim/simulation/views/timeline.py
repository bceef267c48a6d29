"""A simulated run as a `traces.Trace`: its tasks as spans, and what they leave in each memory and on each link."""

from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple

from sim.cost import CacheContent, Setup
from sim.problem import Batch
from sim.schedule import USES_EXPERTS, LaneKind, MemoryPart, Op, PipelineShape, Task, Tier, layout_of
from sim.simulation.energy import power_counters
from sim.simulation.simulator import Executed, simulate_steps
from traces.trace import LINK_RATE, MEMORY, NONE, Counter, Span, Trace

MOVING: dict[str, set[str]] = {
    Tier.DEVICE: {MemoryPart.WEIGHT_SLOTS, MemoryPart.KV_CACHE},
    Tier.HOST: {MemoryPart.KV_CACHE, MemoryPart.HIDDEN_STATES, MemoryPart.STAGING},
    Tier.PINNED: {MemoryPart.KV_CACHE, MemoryPart.HIDDEN_STATES, MemoryPart.STAGING},
}
"""Parts of the memory plan that tasks fill and free; the others are held for the whole run."""

RECORDED_STEPS = 3
"""Prefill and the first two decode steps: what a person can look at, and all that differs from step to step."""


def record(setup: Setup, metadata: dict[str, Any], num_steps: int = RECORDED_STEPS) -> Trace:
    """Simulate the first steps of a setup and keep everything. The metadata says which steps the trace holds."""
    setup.require_fit()
    executed: list[Executed] = []
    stop = min(num_steps, setup.last_step + 1)
    simulate_steps(setup, 0, stop, on_task=executed.append)
    whole = {
        "origin": "simulated",
        "schedule": setup.schedule.name,
        "model": setup.problem.model.name,
        "hardware": setup.problem.hardware.name,
        "policy": setup.policy.to_dict(),
        "steps": [0, stop],
        **structure(setup.shape, setup.batch),
        **metadata,
    }
    power = power_counters(setup.problem.hardware, executed, setup.num_parts)
    counters = [*_memory(setup, executed), *link_rates(executed), *power]
    return Trace(whole, [span_of(one) for one in executed], counters)


def structure(shape: PipelineShape, batch: Batch) -> dict[str, Any]:
    """What it takes to issue a run's tasks once more, and to know how much each has to do, as JSON values."""
    micro_batches = [asdict(one) for one in batch.micro_batches]
    return {
        "shape": describe_shape(shape),
        "batch": {"gen_len": batch.gen_len, "copies": batch.copies, "micro_batches": micro_batches},
    }


def describe_shape(shape: PipelineShape) -> dict[str, Any]:
    """A pipeline as JSON values, from which its tasks can be issued once more."""
    described = {
        **asdict(shape),
        "experts": [int(places) for places in shape.experts],
        **{name: list(getattr(shape, name)) for name in ("streamed", "streamed_in_prefill")},
        **{name: getattr(shape, name).value for name in ("attention", "prefill_experts")},
        "layers_on_host": list(shape.layers_on_host),
    }
    if not shape.runs_on_host:
        del described["layers_on_host"]
    return described


def span_of(one: Executed) -> Span:
    """A simulated task as a trace keeps it."""
    task, cost = one.task, one.cost
    what = (cost.bytes, cost.flops, cost.bound, str(one.waited_for), one.cause)
    return Span(task.id, task.op.value, task.lane.kind.value, *task.key[1:], one.start_ns, one.end_ns, *what)


class _Change(NamedTuple):
    """Bytes that come into a memory or leave it."""

    time_ns: int
    rank: int
    tier: Tier
    size: int


def _memory(setup: Setup, executed: list[Executed]) -> Iterator[Counter]:
    """Samples of what each tier holds, on top of what the plan keeps there for the whole run."""
    ranks = range(setup.num_ranks)
    plan = setup.memory.tiers()
    stays = {
        tier: sum(size for part, size in parts.items() if part not in MOVING[tier]) for tier, parts in plan.items()
    }
    held = {(rank, Tier.DEVICE): stays[Tier.DEVICE] for rank in ranks}
    held |= {(NONE, tier): stays[tier] for tier in (Tier.HOST, Tier.PINNED)}
    yield from (_sample(held, rank, 0) for rank in (*ranks, NONE))
    copies = setup.batch.copies  # devices that divide the batch do alike, and the host serves them all
    by_time = attrgetter("time_ns")
    for time_ns, changes in groupby(sorted(_changes(setup, executed), key=by_time), by_time):
        changed = set()
        for change in changes:
            held[change.rank, change.tier] += change.size * (copies if change.rank == NONE else 1)
            changed.add(change.rank)
        yield from (_sample(held, rank, time_ns) for rank in sorted(changed))


def _sample(held: dict[tuple[int, Tier], int], rank: int, time_ns: int) -> Counter:
    return Counter(MEMORY, time_ns, {tier: held[of, tier] for of, tier in held if of == rank}, rank)


def _changes(setup: Setup, executed: list[Executed]) -> Iterator[_Change]:
    """Each task's effect on memory. A buffer is held from the start of the copy into it to the end of its last use."""
    last_use = _last_uses(executed)
    buffers = layout_of(setup.schedule, setup.shape).buffers
    hidden = "hidden of host layers" if setup.shape.runs_on_host else "hidden on host"
    pinned_kv, pinned_hidden = (buffers[name].tier is Tier.PINNED for name in ("kv", hidden))
    staged: dict[tuple[int, int, int, int], int] = {}
    for one in executed:
        op, rank, size = one.task.op, one.task.lane.rank, one.cost.bytes
        if op in (Op.LOAD_WEIGHTS, Op.LOAD_WEIGHTS_PAGEABLE):
            yield _Change(one.start_ns, rank, Tier.DEVICE, size)
            freed = last_use.get((rank, one.task.step, one.task.layer))
            if freed is not None:
                yield _Change(freed, rank, Tier.DEVICE, -size)
            if op is Op.LOAD_WEIGHTS and not setup.shape.weights_pinned:
                yield from _on_host(one.end_ns, -staged.pop(_page(one.task), 0), pinned=True)
        elif op is Op.PIN_WEIGHTS:
            staged[_page(one.task)] = size
            yield from _on_host(one.start_ns, size, pinned=True)
        elif op is Op.HOST_LAYER:
            yield from _on_host(one.end_ns, sum(_kv_growth(setup, one.task)), pinned=False)
        elif op is Op.STORE_HIDDEN and rank == 0:
            yield from _on_host(one.start_ns, size, pinned=pinned_hidden)
        elif op is Op.LOAD_HIDDEN and rank == 0 and (one.task.step == 0 or _leaves_host(setup, one.task)):
            yield from _on_host(one.end_ns, -size, pinned=pinned_hidden)
        elif op is Op.STORE_KV:
            yield from _on_host(one.start_ns, _kv_growth(setup, one.task).on_host, pinned=pinned_kv)
        elif op is Op.ATTN:
            yield from _grown(setup, one)


def _page(task: Task) -> tuple[int, int, int, int]:
    """Which page of weights a task moves."""
    return task.lane.rank, task.step, task.layer, task.page


def _leaves_host(setup: Setup, task: Task) -> bool:
    """Whether a task takes hidden states from the last of the layers that run on the host."""
    return setup.shape.runs_on_host and task.layer == setup.shape.layers_on_host[1] - 1


def _on_host(time_ns: int, size: int, *, pinned: bool) -> Iterator[_Change]:
    yield _Change(time_ns, NONE, Tier.HOST, size)
    if pinned:
        yield _Change(time_ns, NONE, Tier.PINNED, size)


def _grown(setup: Setup, one: Executed) -> Iterator[_Change]:
    """New KV entries that attention itself keeps: on the host beside CPU attention, or of a cache on the device."""
    task, grown = one.task, _kv_growth(setup, one.task)
    if task.lane.kind is LaneKind.CPU:
        yield from _on_host(one.end_ns, grown.on_host, pinned=False)
    elif grown.on_device:
        yield _Change(one.end_ns, task.lane.rank, Tier.DEVICE, grown.on_device)


class _Growth(NamedTuple):
    """Bytes by which one rank's KV cache grows in each place."""

    on_device: int
    on_host: int


def _kv_growth(setup: Setup, task: Task) -> _Growth:
    """What a task's step adds; a full sliding window drops as many as come."""
    before, after = (_kept_bytes(setup, task, step) for step in (task.step - 1, task.step))
    ranks = setup.num_ranks
    return _Growth(*(round((more - less) / ranks) for less, more in zip(before, after, strict=True)))


def _kept_bytes(setup: Setup, task: Task, step: int) -> tuple[int, int]:
    """What a task's layer keeps of its micro-batch after `step`, on the device and on the host."""
    model = setup.problem.model
    layer, micro_batch = model.layers[task.layer], setup.batch.micro_batches[task.micro_batch]
    kept = CacheContent.of(layer, micro_batch, step) if step >= 0 else CacheContent()
    stays = kept.on_device(setup.policy, micro_batch) if setup.shape.kv_on_host(task.micro_batch) else kept
    bits = setup.policy.cache_bits(model)
    return stays.bytes(layer, bits), kept.without(stays).bytes(layer, bits)


def _last_uses(executed: list[Executed]) -> dict[tuple[int, int, int], int]:
    """Per (rank, step, layer), when its weights were read for the last time."""
    last: dict[tuple[int, int, int], int] = {}
    for one in executed:
        if one.task.op in USES_EXPERTS:
            key = (one.task.lane.rank, one.task.step, one.task.layer)
            last[key] = max(last.get(key, 0), one.end_ns)
    return last


def link_rates(executed: list[Executed]) -> Iterator[Counter]:
    """What each link carries: the mean rate of the copy that is on it."""
    rates: dict[int, dict[str, float]] = {}
    edges: dict[tuple[int, int], dict[str, float]] = {}
    for one in executed:
        kind, rank = one.task.lane
        if kind in (LaneKind.H2D, LaneKind.D2H) and one.end_ns > one.start_ns:
            edges.setdefault((one.end_ns, rank), {}).setdefault(kind.value, 0.0)
            rate = one.cost.bytes / (one.end_ns - one.start_ns) * 1e9
            edges.setdefault((one.start_ns, rank), {})[kind.value] = rate
    for (time_ns, rank), changed in sorted(edges.items()):
        now = rates.setdefault(rank, {LaneKind.H2D.value: 0.0, LaneKind.D2H.value: 0.0})
        now.update(changed)
        yield Counter(LINK_RATE, time_ns, dict(now), rank)
