"""The tasks that compute: those of the GPU lane, which move micro-batches on, and attention on the host."""

from collections.abc import Callable

from engine.device import Device
from engine.memory import Activations, WeightStream
from engine.model import (
    Attended,
    AttentionCall,
    CacheNeeded,
    GenerateCoroutine,
    InFlight,
    KeysValues,
    LayerEntry,
    StackEnd,
    Store,
    layer_of,
)
from engine.tasks.attend import DecodeAttention, attend_on_device
from sim.schedule import PipelineShape, Task


class Compute:
    """Computes for the micro-batches of one batch. Methods return the bytes that a task read of the KV cache."""

    def __init__(
        self,
        shape: PipelineShape,
        weights: WeightStream,
        device: Device,
        attention: DecodeAttention,
        activations: Activations,
        on_head: Callable[[GenerateCoroutine], None],
    ) -> None:
        self._shape = shape
        self._weights = weights
        self._device = device
        self._attention = attention
        self._activations = activations
        self._on_head = on_head

    def pre_attn(self, task: Task, micro_batch: GenerateCoroutine, desk: InFlight) -> int:
        """From the entry of a layer to its attention call, or to whatever it needs before."""
        if self._shape.streams_non_experts or not self._shape.streamed[task.layer]:
            self._use_weights(task, micro_batch)
        else:
            micro_batch.weights_ready = False
        with self._activations.working(micro_batch, task):
            if micro_batch.at is None:
                micro_batch.start()
            if not isinstance(micro_batch.at, LayerEntry) or micro_batch.at.layer != task.layer:
                raise RuntimeError(f"micro-batch {micro_batch.index} is not at this layer but at {micro_batch.at!r}")
            loaded, desk.loaded_hidden = desk.loaded_hidden, None
            micro_batch.resume(loaded)
        self._activations.stopped(micro_batch, desk)
        return 0

    def attn(self, task: Task, micro_batch: GenerateCoroutine, desk: InFlight) -> int:
        """Attention on the device, by the model's own code."""
        with self._activations.working(micro_batch, task):
            if isinstance(micro_batch.at, CacheNeeded):
                micro_batch.resume(tuple(self._whole_cache(task, micro_batch, desk)))
            if not isinstance(micro_batch.at, AttentionCall):
                return 0  # the layer keeps no keys and values
            call = micro_batch.at
            known = KeysValues(call.key, call.value)
            if not self._shape.streams_kv and task.step == 0:
                self._keep_on_device(task, micro_batch, desk)
            if not call.whole_cache:
                known = self._whole_cache(task, micro_batch, desk)
            desk.attended = attend_on_device(call, known)
        self._activations.stopped(micro_batch, desk)
        return known.num_bytes

    def post_attn(self, task: Task, micro_batch: GenerateCoroutine, desk: InFlight) -> int:
        """From the attention's result to the end of the layer."""
        self._use_weights(task, micro_batch)
        with self._activations.working(micro_batch, task):
            while not _has_left(micro_batch, task.layer):
                self._go_on(task, micro_batch, desk)
        self._activations.stopped(micro_batch, desk)
        return 0

    def head(self, task: Task, micro_batch: GenerateCoroutine, desk: InFlight) -> int:
        """From the end of the last layer to the entry of the first in the next step, or to the end of generation."""
        with self._activations.working(micro_batch, task):
            micro_batch.resume_and_draw()
        micro_batch.step += 1
        self._activations.stopped(micro_batch, desk)
        self._on_head(micro_batch)
        return 0

    def attn_on_host(self, task: Task, micro_batch: GenerateCoroutine, desk: InFlight) -> int:
        """Decode attention in host memory; keeps the new keys and values there."""
        new, desk.new_on_host = desk.new_on_host, None
        if new is None:
            return 0
        store = desk.stores[task.layer]
        store.append(new)
        query, desk.query_on_host = desk.query_on_host, None
        if query is None:
            return new.num_bytes  # the model computes with the cache itself: it gets all of it with LoadHidden
        call = micro_batch.at
        assert isinstance(call, AttentionCall)
        desk.attended_on_host = self._attention(micro_batch, call, query, store.content, desk.mask_on_host)
        return store.content.num_bytes

    def _use_weights(self, task: Task, micro_batch: GenerateCoroutine) -> None:
        if self._shape.streamed[task.layer]:
            self._weights.bind(task)
        micro_batch.weights_ready = True

    def _go_on(self, task: Task, micro_batch: GenerateCoroutine, desk: InFlight) -> None:
        match micro_batch.at:
            case AttentionCall():
                micro_batch.resume(_take_attended(micro_batch.at, desk))
            case CacheNeeded():
                micro_batch.resume(tuple(desk.take_loaded_cache(task)))
            case _:
                micro_batch.resume()

    def _keep_on_device(self, task: Task, micro_batch: GenerateCoroutine, desk: InFlight) -> None:
        new = desk.take_new(task)
        if new is not None:
            store = desk.stores.get(task.layer)
            if store is None:
                name = f"kv cache of micro-batch {micro_batch.index}"
                store = desk.stores[task.layer] = Store(new, desk.capacity, self._device.allocate, name)
            store.append(new)

    def _whole_cache(self, task: Task, micro_batch: GenerateCoroutine, desk: InFlight) -> KeysValues:
        """All keys and values of a layer on the device, the newest ones included."""
        if not self._shape.streams_kv:
            self._keep_on_device(task, micro_batch, desk)
            return desk.stores[task.layer].content
        loaded = desk.take_loaded_cache(task)
        cache = layer_of(desk.cache, task.layer)
        assert cache is not None
        new = cache.new[task.step]
        for whole, newest in zip(loaded, new, strict=True):
            whole[:, :, -new.num_tokens :].copy_(newest)
        return loaded


def _take_attended(call: AttentionCall, desk: InFlight) -> Attended:
    attended, desk.attended = desk.attended, None
    if attended is None and not call.whole_cache:
        raise RuntimeError("attention has no result")
    return attended or attend_on_device(call, KeysValues(call.key, call.value))


def _has_left(micro_batch: GenerateCoroutine, layer: int) -> bool:
    at = micro_batch.at
    return isinstance(at, StackEnd) or (isinstance(at, LayerEntry) and at.layer > layer) or micro_batch.finished
