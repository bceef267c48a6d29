"""A model on a device under a policy: set up once for batch after batch; everything is undone at the end."""

import contextlib
import sys
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor

from torch.backends import cuda

from engine.device import aligned_bytes, for_now
from engine.host import BITS, HostAttention, HostThreads
from engine.memory import STAGING, HostBlocks, HostCopy, HostWeights, WeightStream, placed
from engine.model import Anatomy, kept_experts, lean_gates, shared_apart, split
from engine.tasks import RunContext, Session, expert_exchange_bytes
from sim.schedule import LaneKind, MemoryPart, Place, SlotLayout, Tier
from traces.errors import InputError

SWITCH_INTERVAL_S = 2e-4
"""How long a thread may hold Python's lock while others wait: the lanes hand over to each other often."""


@contextlib.contextmanager
def open_session(run: RunContext, keep_model: bool = True) -> Iterator[Session]:
    """Puts the model on its device, ready for `run_batch`; `keep_model` unpacks experts at the end."""
    model, device, policy = run.model, run.device, run.policy
    layout = run.layout(policy.num_micro_batches)
    weights = HostWeights(device, run.host, run.streamed, policy.locked_bytes)
    device.memory.plan = _plan_in_words(run, layout)
    with contextlib.ExitStack() as stack:
        stack.callback(device.reserve_pinned, {})
        device.reserve_pinned(_reserved_bytes(run, weights, layout))
        blocks = stack.enter_context(contextlib.closing(HostBlocks(device, run.host)))
        shared = shared_apart(model, run.anatomy) if layout.shape.experts else {}
        if run.sums is not None and layout.shape.experts:
            _check_shared(run, shared)
        stream = stack.enter_context(placed(model, run.anatomy, device, weights, layout, run.packed, keep_model))
        stack.enter_context(kept_experts(model))
        stack.enter_context(lean_gates(model.modules()))
        owners = [parameter.owner for layer in run.streamed if layer for parameter in layer.parameters.values()]
        on_their_own = {i: one.module for i, one in stream.experts.items() if layout.shape.experts}
        for i, experts in stream.experts.items():
            experts.shared = shared.get(i)
        beside = [one.shared for one in stream.experts.values() if one.shared is not None]
        stay = range(*layout.shape.layers_on_host)
        stack.enter_context(split(model, run.anatomy.layers, owners, on_their_own, beside, stay))
        stack.enter_context(device.for_run(_decoding_lanes(run, layout)))
        kernel = stack.enter_context(HostAttention(device.cpu_threads))
        if policy.attention is Place.CPU and model.dtype in BITS:
            with ThreadPoolExecutor(1) as apart:  # the kernel's helpers inherit what the lane asks of its thread
                apart.submit(_prepare_kernel, run, kernel).result()
        stack.enter_context(for_now(sys.setswitchinterval, SWITCH_INTERVAL_S, sys.getswitchinterval()))
        # cuDNN makes a plan for every new length of a cache, which takes it 60 ms on an H200: longer than a layer.
        stack.enter_context(for_now(cuda.enable_cudnn_sdp, False, cuda.cudnn_sdp_enabled()))  # type: ignore[no-untyped-call]
        copy = stack.enter_context(HostCopy(device.pin_threads, device.cores.cores_of(LaneKind.PIN)))
        playing = device.gpu_threads
        threads = None if playing is None else stack.enter_context(contextlib.closing(HostThreads(playing)))
        yield Session(run, stream, kernel, blocks, copy, threads)


def _check_shared(run: RunContext, apart: Collection[int]) -> None:
    """Raises InputError where a rank's part of shared experts would be added to what is a sum already."""
    for i, (some, layer) in enumerate(zip(run.anatomy.shared, run.anatomy.layers, strict=True)):
        routed = run.anatomy.experts[i][0].owner if some else None
        block = next((one for one in layer.children() if any(module is routed for module in one.modules())), None)
        inside = block is not None and any("shared" in path for path, _ in block.named_parameters())
        if inside and i not in apart:
            raise InputError(
                f"schedule {run.schedule.name}: on several devices the shared experts of {type(run.model).__name__} "
                f"cannot be computed apart from their layers; give another schedule, such as cgopipe"
            )


def _decoding_lanes(run: RunContext, layout: SlotLayout) -> set[LaneKind]:
    """Those that have work in a step in the middle of decode."""
    (step,) = run.steps(layout.shape, 1, 2, last=sys.maxsize)
    return {task.lane.kind for task in step}


def _prepare_kernel(run: RunContext, kernel: HostAttention) -> None:
    with run.device.open_lane(LaneKind.CPU):
        kernel.prepare(run.model.dtype)


def _reserved_bytes(run: RunContext, weights: HostWeights, layout: SlotLayout) -> dict[str, int]:
    """What decode is promised of page-locked memory whatever else locks some: staging, and exchanges with the host."""
    reserved: dict[str, int] = {STAGING: WeightStream.planned_staging_bytes(weights, layout)}
    if layout.buffers["qkv on host"].tier is Tier.PINNED:
        reserved[MemoryPart.ATTENTION_EXCHANGE] = _exchange_bytes(run)
    reserved[MemoryPart.EXPERT_EXCHANGE] = expert_exchange_bytes(run, layout)
    return reserved


def _exchange_bytes(run: RunContext) -> int:
    """For query, new keys, new values and attention's output of all micro-batches that the host attends for."""
    widest = max(_attention_width(run.anatomy, layer) for layer in range(len(run.anatomy.layers)))
    row_bytes = widest * run.model.dtype.itemsize
    n = run.policy.num_micro_batches
    on_host = n - run.policy.attending_on_device(n)
    return on_host * 4 * aligned_bytes(run.policy.micro_batch_size * row_bytes)


def _attention_width(anatomy: Anatomy, layer: int) -> int:
    """An upper bound of the width of query, keys, values and output together: what the projections put out."""
    experts = {id(parameter.tensor) for parameter in anatomy.experts[layer]}
    shapes = [p.tensor.shape for p in anatomy.parameters(layer) if id(p.tensor) not in experts]
    return max((max(shape) for shape in shapes if len(shape) == 2), default=0)


def _plan_in_words(run: RunContext, layout: SlotLayout) -> str:
    policy = run.policy
    largest = max((layer.prefill_bytes for layer in run.streamed if layer), default=0)
    slots = layout.buffers["weights"].turns
    return (
        f"schedule {run.schedule.name}, {policy.num_micro_batches} micro-batches of {policy.micro_batch_size}, "
        f"{slots} weight slots of {largest} bytes, experts_on_device {policy.experts_on_device:g}, "
        f"kv_on_device {policy.kv_on_device:g}, attention_on_device {policy.attention_on_device:g}"
    )
