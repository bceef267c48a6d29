"""The tasks that compute: those of the GPU lane, which move micro-batches on, and attention on the host."""

import functools
import math
from collections.abc import Callable

import torch

from engine.model import (
    Attended,
    AttentionCall,
    CacheNeeded,
    ExpertsCall,
    Finished,
    InFlight,
    KeysValues,
    LayerEntry,
    StackEnd,
    layer_of,
)
from engine.tasks.attend import attend_on_device
from engine.tasks.context import BatchContext
from engine.tasks.host_room import HostRoom
from sim.schedule import Task


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
            _leave_experts(micro_batch)
            if not isinstance(micro_batch.at, LayerEntry) or micro_batch.at.layer != task.layer:
                raise RuntimeError(f"micro-batch {micro_batch.index} is not at this layer but at {micro_batch.at!r}")
            loaded, micro_batch.loaded_hidden = micro_batch.loaded_hidden, None
            micro_batch.resume(loaded)
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
            known = KeysValues(call.key, call.value)
            if not self._shape.streams_kv and task.step == 0:
                self._keep_on_device(task, micro_batch)
            if not call.whole_cache:
                known = self._whole_cache(task, micro_batch)
            micro_batch.attended = attend_on_device(call, known)
        self._activations.stopped(micro_batch)
        return known.num_bytes

    def post_attn(self, task: Task, micro_batch: InFlight) -> int:
        """From the attention's result to the end of the layer."""
        self._use_weights(task, micro_batch)
        micro_batch.experts_apart = False
        self._go_on(task, micro_batch, lambda: _has_left(micro_batch, task.layer))
        return 0

    def route(self, task: Task, micro_batch: InFlight) -> int:
        """From the attention's result to the call of the layer's routed experts."""
        micro_batch.weights_ready = micro_batch.experts_apart = True
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
                    case LayerEntry() | StackEnd() | Finished():
                        raise RuntimeError(
                            f"micro-batch {micro_batch.index} has no such call but is {micro_batch.at!r}"
                        )
                    case _:
                        micro_batch.resume()
        self._activations.stopped(micro_batch)

    def head(self, task: Task, micro_batch: InFlight) -> int:
        """From the end of the last layer to the entry of the first in the next step, or to the end of generation."""
        with self._activations.working(micro_batch, task):
            _leave_experts(micro_batch)
            micro_batch.resume_and_draw()
        micro_batch.step += 1
        self._activations.stopped(micro_batch)
        self._batch.on_head(micro_batch)
        return 0

    def attn_on_host(self, task: Task, micro_batch: InFlight) -> int:
        """Decode attention in host memory; keeps the new keys and values there."""
        new, micro_batch.new_on_host = micro_batch.new_on_host, None
        if new is None:
            return 0
        store = micro_batch.stores[task.layer]
        store.append(new)
        query, micro_batch.query_on_host = micro_batch.query_on_host, None
        if query is None:
            return new.num_bytes  # the model computes with the cache itself: it gets all of it with LoadHidden
        room = functools.partial(self._attended_room, micro_batch)
        micro_batch.attended_on_host = self._batch.attention(micro_batch, query, store.content, room)
        return store.content.num_bytes

    def _attended_room(self, micro_batch: InFlight, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return self._host.attended(micro_batch, math.prod(shape) * dtype.itemsize).view(shape, dtype)

    def _use_weights(self, task: Task, micro_batch: InFlight) -> None:
        if self._shape.streams(task.step, task.layer):
            self._batch.session.weights.bind(task)
        micro_batch.weights_ready = True

    def _keep_on_device(self, task: Task, micro_batch: InFlight) -> None:
        new = micro_batch.take_new(task)
        if new is not None:
            device, name = self._batch.session.run.device, f"kv cache of micro-batch {micro_batch.index}"
            micro_batch.keep(task.layer, new, device.allocate, name)

    def _whole_cache(self, task: Task, micro_batch: InFlight) -> KeysValues:
        """All keys and values of a layer on the device, the newest ones included."""
        if not self._shape.streams_kv:
            self._keep_on_device(task, micro_batch)
            return micro_batch.stores[task.layer].content
        loaded = micro_batch.take_loaded_cache(task)
        cache = layer_of(micro_batch.cache, task.layer)
        assert cache is not None
        new = cache.new[task.step]
        for whole, newest in zip(loaded, new, strict=True):
            whole[:, :, -new.num_tokens :].copy_(newest)
        return loaded


def _leave_experts(micro_batch: InFlight) -> None:
    """Goes on from the experts of a layer, which were computed apart, to the end of the layer."""
    if isinstance(micro_batch.at, ExpertsCall):
        micro_batch.resume(micro_batch.take_output())


def _take_attended(micro_batch: InFlight, call: AttentionCall) -> Attended:
    attended, micro_batch.attended = micro_batch.attended, None
    if attended is None and not call.whole_cache:
        raise RuntimeError("attention has no result")
    return attended or attend_on_device(call, KeysValues(call.key, call.value))


def _has_left(micro_batch: InFlight, layer: int) -> bool:
    at = micro_batch.at
    return isinstance(at, StackEnd) or (isinstance(at, LayerEntry) and at.layer > layer) or micro_batch.finished
