"""The tasks that compute: those of the GPU lane, which move micro-batches on, and attention on the host."""

import functools
import math
from collections.abc import Callable, Sequence

import torch

from engine.model import (
    AsItLies,
    Attended,
    AttentionCall,
    CacheNeeded,
    ExpertsCall,
    Finished,
    InFlight,
    KeysValues,
    LayerEntry,
    StackEnd,
    SumNeeded,
)
from engine.tasks.attend import attend_on_device
from engine.tasks.context import BatchContext
from engine.tasks.host import HostRoom
from sim.schedule import EXPERTS_SUM, OUT_PROJ_SUM, Task


class Compute:
    """Computes for the micro-batches of one batch. Methods return the bytes that a task read of the KV cache."""

    def __init__(self, batch: BatchContext) -> None:
        self._batch = batch
        self._shape = batch.layout.shape
        self._activations = batch.activations
        self._host = HostRoom(batch)

    def pre_attn(self, task: Task, micro_batch: InFlight) -> int:
        """From the entry of a layer to its attention call, or to whatever it needs before."""
        if self._shape.streams_non_experts or not self._shape.streams(task.step, task.layer):
            self._use_weights(task, micro_batch)
        else:
            micro_batch.weights_ready = False
        with self._activations.working(micro_batch, task):
            if micro_batch.at is None:
                micro_batch.start()
            self._leave_experts(micro_batch)
            micro_batch.experts_apart = self._shape.splits_experts(task.step)
            if not isinstance(micro_batch.at, LayerEntry) or micro_batch.at.layer != task.layer:
                raise RuntimeError(f"micro-batch {micro_batch.index} is not at this layer but at {micro_batch.at!r}")
            loaded, micro_batch.loaded_hidden = micro_batch.loaded_hidden, None
            micro_batch.resume(loaded)
        self._activations.stopped(micro_batch)
        return 0

    def enter_host(self, task: Task, micro_batch: InFlight) -> int:
        """From where a micro-batch is, or from its start, past the layers that run on the host."""
        with self._activations.working(micro_batch, task):
            if micro_batch.at is None:
                micro_batch.start()
            self._leave_experts(micro_batch)
        self._activations.stopped(micro_batch)
        return 0

    def attn(self, task: Task, micro_batch: InFlight) -> int:
        """Attention on the device, by the model's own code."""
        with self._activations.working(micro_batch, task):
            if isinstance(micro_batch.at, CacheNeeded):
                micro_batch.resume(tuple(self._whole_cache(task, micro_batch)))
            if not isinstance(micro_batch.at, AttentionCall):
                return 0  # the layer keeps no keys and values
            call = micro_batch.at
            if micro_batch.step == 0:
                self._keep_on_device(task, micro_batch)
            whole = AsItLies(KeysValues(call.key, call.value))
            known = [whole] if call.whole_cache else self._cache(task, micro_batch)
            micro_batch.attended = attend_on_device(call, known)
            micro_batch.drop_old(task)
        self._activations.stopped(micro_batch)
        return sum(one.content.num_bytes for one in known)

    def post_attn(self, task: Task, micro_batch: InFlight) -> int:
        """From the attention's result to the end of the layer."""
        self._use_weights(task, micro_batch)
        self._go_on(task, micro_batch, lambda: _has_left(micro_batch, task.layer))
        return 0

    def out_proj(self, task: Task, micro_batch: InFlight) -> int:
        """From the attention's result to where ranks add up its projections."""
        if self._shape.splits_experts(task.step) and self._shape.experts[task.layer]:
            micro_batch.weights_ready = True  # what streams are experts, and those are computed apart
        else:
            self._use_weights(task, micro_batch)
        self._go_on(task, micro_batch, lambda: _is_at_sum(micro_batch, OUT_PROJ_SUM))
        return 0

    def experts(self, task: Task, micro_batch: InFlight) -> int:
        """From there to where ranks add up what the networks of the layer made."""
        self._go_on(task, micro_batch, lambda: _is_at_sum(micro_batch, EXPERTS_SUM))
        return 0

    def route(self, task: Task, micro_batch: InFlight) -> int:
        """From the attention's result, or the sum of its projections, to the call of the layer's routed experts."""
        micro_batch.weights_ready = True
        self._go_on(task, micro_batch, lambda: isinstance(micro_batch.at, ExpertsCall))
        return 0

    def _go_on(self, task: Task, micro_batch: InFlight, arrived: Callable[[], bool]) -> None:
        with self._activations.working(micro_batch, task):
            while not arrived():
                match micro_batch.at:
                    case AttentionCall():
                        micro_batch.resume(_take_attended(micro_batch, micro_batch.at))
                    case CacheNeeded():
                        micro_batch.resume(tuple(micro_batch.take_loaded_cache(task)))
                    case LayerEntry() | StackEnd() | Finished() as at:
                        raise RuntimeError(
                            f"micro-batch {micro_batch.index} called no experts before {type(at).__name__}"
                        )
                    case _:
                        micro_batch.resume()
        self._activations.stopped(micro_batch)

    def _leave_experts(self, micro_batch: InFlight) -> None:
        """Goes on from the experts of a layer, which were computed apart, to the end of the layer."""
        call = micro_batch.at
        if isinstance(call, ExpertsCall):
            before = self._shape.deferred_to(micro_batch.step, call.layer)
            micro_batch.resume(micro_batch.take_output(before))
            micro_batch.shared_output = None

    def head(self, task: Task, micro_batch: InFlight) -> int:
        """From the end of the last layer to the entry of the first in the next step, or to the end of generation."""
        with self._activations.working(micro_batch, task):
            self._leave_experts(micro_batch)
            micro_batch.pass_head()
        self._activations.stopped(micro_batch)
        self._batch.on_head(micro_batch)
        return 0

    def attn_on_host(self, task: Task, micro_batch: InFlight) -> int:
        """Decode attention in host memory; keeps the new keys and values there."""
        new, micro_batch.new_on_host = micro_batch.new_on_host, None
        if new is None:
            return 0
        store = micro_batch.kept(task.layer)
        assert store is not None, "prompts leave their keys and values on the host"
        store.append(new)
        query, micro_batch.query_on_host = micro_batch.query_on_host, None
        if query is None:
            return new.num_bytes  # the model computes with the cache itself: it gets all of it with LoadHidden
        room = functools.partial(self._attended_room, micro_batch)
        micro_batch.attended_on_host = self._batch.attention(micro_batch, query, store, room)
        return store.num_bytes

    def _attended_room(self, micro_batch: InFlight, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return self._host.attended(micro_batch, math.prod(shape) * dtype.itemsize).view(shape, dtype)

    def _use_weights(self, task: Task, micro_batch: InFlight) -> None:
        if self._shape.streams(task.step, task.layer):
            self._batch.session.weights.bind(task)
        micro_batch.weights_ready = True

    def _keep_on_device(self, task: Task, micro_batch: InFlight) -> None:
        """What of the new keys and values stays; the rest is for StoreKV."""
        micro_batch.keep_resident(task, self._batch.session.run.device.allocate)
        if not self._shape.kv_on_host(task.micro_batch):
            micro_batch.take_new(task)

    def _cache(self, task: Task, micro_batch: InFlight) -> list[AsItLies]:
        """All of a layer's keys and values, the newest included: of requests whose cache stays, then of the others."""
        new = micro_batch.new(task)
        assert new is not None
        self._keep_on_device(task, micro_batch)
        resident = micro_batch.resident.get(task.layer)
        found = [] if resident is None else [resident.as_it_lies]
        if self._shape.kv_on_host(task.micro_batch):
            loaded = micro_batch.take_loaded_cache(task)
            for whole, newest in zip(loaded, new.of_requests(micro_batch.resident_requests), strict=True):
                whole[:, :, -new.num_tokens :].copy_(newest)
            found.append(AsItLies(loaded))
        return found

    def _whole_cache(self, task: Task, micro_batch: InFlight) -> KeysValues:
        """The same in one piece and in order, for a model that computes with it before attention."""
        parts = self._cache(task, micro_batch)
        if len(parts) == 1 and not parts[0].oldest:
            return parts[0].content
        oldest, contents = [one.oldest for one in parts], zip(*(one.content for one in parts), strict=True)
        named = zip(KeysValues._fields, contents, strict=True)
        return KeysValues(*(self._joined(name, task.layer, tensors, oldest) for name, tensors in named))

    def _joined(self, name: str, layer: int, tensors: Sequence[torch.Tensor], oldest: Sequence[int]) -> torch.Tensor:
        """All parts in one buffer, which the next task of this lane may use again."""
        _, heads, tokens, dim = tensors[0].shape
        shape, dtype = (sum(map(len, tensors)), heads, tokens, dim), tensors[0].dtype
        room_bytes = self._batch.most_cached_numbers(name, layer, heads * dim) * dtype.itemsize
        whole = self._batch.buffers.on_device(f"joined kv cache, {name}", shape, dtype, room_bytes)
        rows = whole.split_with_sizes([len(tensor) for tensor in tensors])
        for there, tensor, first in zip(rows, tensors, oldest, strict=True):
            there[:, :, : tokens - first].copy_(tensor[:, :, first:])
            there[:, :, tokens - first :].copy_(tensor[:, :, :first])
        return whole


def _take_attended(micro_batch: InFlight, call: AttentionCall) -> Attended:
    attended, micro_batch.attended = micro_batch.attended, None
    if attended is None and not call.whole_cache:
        raise RuntimeError("attention has no result")
    return attended or attend_on_device(call, [AsItLies(KeysValues(call.key, call.value))])


def _is_at_sum(micro_batch: InFlight, which: int) -> bool:
    return isinstance(micro_batch.at, SumNeeded) and micro_batch.at.which == which


def _has_left(micro_batch: InFlight, layer: int) -> bool:
    at = micro_batch.at
    return isinstance(at, StackEnd) or (isinstance(at, LayerEntry) and at.layer > layer) or micro_batch.finished
