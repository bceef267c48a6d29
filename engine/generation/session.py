"""A model on a device under a policy: set up once, then batch after batch; everything is undone at the end."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

from transformers import PreTrainedModel

from engine.attention import BITS, HostAttention
from engine.device import Device, Ledger, pinned_footprint_bytes
from engine.memory import Placement, WeightStream, streamed_layers
from engine.model import Anatomy, GenerateCoroutine, Split, lean_gates
from engine.tasks import BatchResult, BatchRun, GenerationOptions
from sim.problem import Policy
from sim.schedule import LaneKind, PipelineShape, Place, Schedule, SlotLayout, layout_of
from traces.errors import InputError

SWITCH_INTERVAL_S = 2e-4
"""How long a thread may hold Python's lock while others wait: the lanes hand over to each other often."""


class Session:
    """Runs batches of a model. Enter it, call `run_batch` as often as needed, leave it."""

    def __init__(
        self, model: PreTrainedModel, device: Device, schedule: Schedule, policy: Policy, generation: GenerationOptions
    ) -> None:
        _check(policy, schedule)
        self._model = model
        self._device = device
        self._schedule = schedule
        self._policy = policy
        self._generation = generation
        self._entered = contextlib.ExitStack()
        self.anatomy = Anatomy.of(model)
        self.host = Ledger("host memory", None)
        self._streamed = streamed_layers(
            model, self.anatomy, policy.experts_on_device, schedule.system.streams_non_experts
        )

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            layout = layout_of(self._schedule, self.shape(self._policy.num_micro_batches))
            staging = WeightStream.pinned_bytes(self._streamed, layout)
            self._device.memory.plan = self._plan_in_words(layout)
            self._device.reserve_pinned(staging + self._exchange_bytes())
            stack.callback(self._device.reserve_pinned, 0)
            self._charge_host(stack)
            placement = stack.enter_context(Placement(self._model, self._device, self._streamed, layout))
            self._weights = placement.weights
            stack.enter_context(lean_gates(self._model.modules()))
            stack.enter_context(Split(self._model, self.anatomy.layers, placement.owners))
            self._kernel = stack.enter_context(HostAttention(_attention_threads(self._device)))
            if self._policy.attention is Place.CPU and self._model.dtype in BITS:
                with ThreadPoolExecutor(1) as apart:  # the kernel's helpers inherit what the lane asks of its thread
                    apart.submit(self._prepare_kernel).result()
            stack.enter_context(_switch_interval(SWITCH_INTERVAL_S))
            self._entered = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entered.close()

    def _prepare_kernel(self) -> None:
        with self._device.open_lane(LaneKind.CPU):
            self._kernel.prepare(self._model.dtype)

    @property
    def memories(self) -> dict[str, Ledger]:
        """The accounts of every tier; `host` is without what is page-locked."""
        return {"device": self._device.memory, "pinned": self._device.pinned, "host": self.host}

    def shape(self, num_micro_batches: int) -> PipelineShape:
        """The pipeline that a batch of so many micro-batches makes."""
        streamed = tuple(layer is not None for layer in self._streamed)
        return self._policy.pipeline(self._schedule, streamed, num_micro_batches)

    @property
    def streamed_bytes(self) -> list[int]:
        """Per layer, what comes over the link each time the layer runs."""
        return [0 if layer is None else layer.num_bytes for layer in self._streamed]

    def run_batch(
        self,
        prompts: Sequence[Sequence[int]],
        first: int = 0,
        on_head: Callable[[GenerateCoroutine], None] = lambda micro_batch: None,
    ) -> BatchResult:
        """Generates for one batch of prompts; `first` numbers its first micro-batch in the whole run."""
        size = self._policy.micro_batch_size
        micro_batches = [prompts[i : i + size] for i in range(0, len(prompts), size)]
        run = BatchRun(
            self._model,
            self._device,
            self._schedule,
            self.shape(len(micro_batches)),
            self._weights,
            self._kernel,
            self.host,
            self._generation,
            self.anatomy.kinds,
        )
        return run.run(micro_batches, first, on_head)

    def _charge_host(self, stack: contextlib.ExitStack) -> None:
        streamed = sum(segment.source.nbytes for layer in self._streamed if layer for segment in layer.segments)
        self.host.charge("streamed weights", streamed)
        stack.callback(self.host.refund, "streamed weights", streamed)

    def _exchange_bytes(self) -> int:
        """Page-locked buffers for what decode exchanges with the host: query, new keys and values, attention output."""
        rows, count = self._policy.micro_batch_size, self._policy.num_micro_batches
        widest = max(self._attention_width(layer) for layer in range(len(self.anatomy.layers)))
        itemsize = self._model.dtype.itemsize
        return count * 4 * pinned_footprint_bytes(rows * widest * itemsize)

    def _attention_width(self, layer: int) -> int:
        """An upper bound of the width of query, keys, values and output together: what the projections put out."""
        experts = {id(parameter.tensor) for parameter in self.anatomy.experts[layer]}
        shapes = [p.tensor.shape for p in self.anatomy.parameters(layer) if id(p.tensor) not in experts]
        return max((max(shape) for shape in shapes if len(shape) == 2), default=0)

    def _plan_in_words(self, layout: SlotLayout) -> str:
        policy = self._policy
        slots, largest = layout.buffers["weights"].turns, max(self.streamed_bytes)
        return (
            f"schedule {self._schedule.name}, {policy.num_micro_batches} micro-batches of {policy.micro_batch_size}, "
            f"{slots} weight slots of {largest} bytes, experts_on_device {policy.experts_on_device:g}, "
            f"kv_on_device {policy.kv_on_device:g}"
        )


def _check(policy: Policy, schedule: Schedule) -> None:
    policy.check_places(schedule)
    if 0 < policy.kv_on_device < 1:
        raise InputError(f"kv_on_device: {policy.kv_on_device:g}: the engine keeps all of it on the device or none")
    if policy.weight_bits is not None or policy.kv_bits is not None:
        raise InputError("weight_bits, kv_bits: the engine runs a model at its own widths: leave both out")


@contextlib.contextmanager
def _switch_interval(interval_s: float) -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(interval_s)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def _attention_threads(device: Device) -> int:
    return getattr(device, "cpu_threads", None) or os.cpu_count() or 1
