"""The tasks that copy activations and KV cache between device and host, each with a real copy over the link."""

from collections.abc import Callable

import torch

from engine.device import LaneContext
from engine.model import AttentionCall, CacheNeeded, InFlight, KeysValues, LayerEntry
from engine.tasks.context import BatchContext
from engine.tasks.host import HostRoom
from sim.schedule import Task


class Transfers:
    """Copies for the micro-batches of one batch. Methods return the bytes that a task moved."""

    def __init__(self, batch: BatchContext, wait_for_layer: Callable[[LaneContext, InFlight], None]) -> None:
        """`wait_for_layer`: until a micro-batch has left the layer that it is in, where something is still summed."""
        self._batch = batch
        self._wait_for_layer = wait_for_layer
        self._buffers = batch.buffers
        self._host = HostRoom(batch)

    def offload_qkv(self, lane: LaneContext, task: Task, micro_batch: InFlight) -> int:
        """Query, new keys and new values to the host, for attention there."""
        new = micro_batch.take_new(task)
        micro_batch.new_on_host = micro_batch.query_on_host = micro_batch.mask_on_host = None
        moved = 0
        if new is not None:
            named = zip(KeysValues._fields, new, strict=True)
            on_host = (self._exchange(lane, f"new {name}", tensor, micro_batch) for name, tensor in named)
            micro_batch.new_on_host = KeysValues(*on_host)
            moved += new.num_bytes
        call = micro_batch.at
        if isinstance(call, AttentionCall) and not call.whole_cache:
            micro_batch.query_on_host = self._exchange(lane, "query", call.query, micro_batch)
            moved += call.query.nbytes
            kept = micro_batch.kept(task.layer)
            num_tokens, window = 1 if kept is None else kept.num_tokens_with(1), micro_batch.window(task.layer)
            if call.mask is not None and not self._batch.attention.by_kernel(call, num_tokens, window):
                block = self._host.mask(micro_batch, call.mask)
                micro_batch.mask_on_host = self._buffers.to_host(lane, block, call.mask)
                moved += call.mask.nbytes
        return moved

    def load_hidden(self, lane: LaneContext, task: Task, micro_batch: InFlight) -> int:
        """In prefill, a waiting micro-batch's hidden states to the device; in decode, what attention gave."""
        if task.step == 0:
            return self._load_prefill_hidden(lane, task, micro_batch)
        if isinstance(micro_batch.at, CacheNeeded):
            return self._load_kv(lane, task, micro_batch, new_tokens=0, room=self._room_of_cache(task))
        attended, micro_batch.attended_on_host = micro_batch.attended_on_host, None
        if attended is None:
            return 0
        name, room_bytes = f"attention output {micro_batch.index}", micro_batch.room_bytes(attended.nbytes)
        on_device = self._buffers.on_device(name, attended.shape, attended.dtype, room_bytes)
        micro_batch.on_its_way = attended
        lane.copy_h2d(on_device, attended, pinned=self._host.attended(micro_batch, attended.nbytes).locked)
        micro_batch.attended = (on_device, None)
        return attended.nbytes

    def store_hidden(self, lane: LaneContext, task: Task, micro_batch: InFlight) -> int:
        """Hidden states of a micro-batch that will wait, to the host; their device memory is free then."""
        self._wait_for_layer(lane, micro_batch)
        entry = micro_batch.at
        if not isinstance(entry, LayerEntry):
            raise RuntimeError(f"micro-batch {micro_batch.index} is not at a layer but at {entry!r}")
        block = self._host.hidden(micro_batch, entry.hidden.nbytes)
        micro_batch.hidden_on_host = self._buffers.to_host(lane, block, entry.hidden)
        lane.mark().wait()
        self._buffers.let_go(entry.hidden)
        self._batch.activations.stopped(micro_batch)
        return micro_batch.hidden_on_host.nbytes

    def store_kv(self, lane: LaneContext, task: Task, micro_batch: InFlight) -> int:
        """New keys and values to the host's cache."""
        new = micro_batch.take_new(task)
        if new is None:
            return 0
        store = micro_batch.kept(task.layer) or self._host.store(task, micro_batch, new)
        if self._host.crosses_link(task.layer, micro_batch):
            for room, tensor in store.places(new):
                lane.copy_d2h(room, tensor, pinned=store.locked)
            lane.keep(*new)
        else:
            named = zip(KeysValues._fields, new, strict=True)
            landed = KeysValues(*(self._land(lane, name, tensor, task.layer, micro_batch) for name, tensor in named))
            lane.mark().wait()
            store.append(landed, self._batch.session.host_copy)
        return new.num_bytes

    def load_kv(self, lane: LaneContext, task: Task, micro_batch: InFlight) -> int:
        """The host's part of a layer's KV cache to the device, for attention there, with room behind for new tokens."""
        slot = self._batch.layout.slot_of("kv on device", task)
        return self._load_kv(lane, task, micro_batch, new_tokens=1, room=f"kv buffer {slot}")

    def _room_of_cache(self, task: Task) -> str:
        """Where a cache goes that the model reads itself: two take turns, where no more than two are on their way."""
        shape = self._batch.layout.shape
        if shape.experts or shape.num_prompts:  # a group waits for all of it; beside prompts all attend ahead
            return f"kv buffer of micro-batch {task.micro_batch}"
        return f"kv buffer {self._batch.layout.slot_of('kv on device', task)}"

    def _load_kv(self, lane: LaneContext, task: Task, micro_batch: InFlight, *, new_tokens: int, room: str) -> int:
        store = micro_batch.kept(task.layer)
        if store is None:
            return 0

        def allocate(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
            width = shape[-2] * shape[-1]
            most = self._batch.most_cached_numbers(name, task.layer, width, on_host=True)
            return self._buffers.on_device(f"{room}, {name}", shape, dtype, most * dtype.itemsize)

        loaded, copies = store.to_device(allocate, new_tokens)
        for there, tensor in copies:
            lane.copy_h2d(there, tensor, pinned=store.locked)
        micro_batch.loaded_caches[task.step, task.layer] = loaded
        return sum(tensor.nbytes for _, tensor in copies)

    def _load_prefill_hidden(self, lane: LaneContext, task: Task, micro_batch: InFlight) -> int:
        host = micro_batch.hidden_on_host
        if host is None:
            return 0
        slot = self._batch.layout.slot_of("activation", task)
        room_bytes = host.nbytes // (len(micro_batch.padding) * micro_batch.width) * self._batch.most_prompt_tokens
        on_device = self._buffers.on_device(f"hidden states {slot}", host.shape, host.dtype, room_bytes)
        lane.copy_h2d(on_device, host, pinned=self._host.hidden(micro_batch, host.nbytes).locked)
        micro_batch.loaded_hidden = on_device
        return host.nbytes

    def _exchange(self, lane: LaneContext, what: str, tensor: torch.Tensor, micro_batch: InFlight) -> torch.Tensor:
        return self._buffers.to_host(lane, self._host.exchanged(what, micro_batch, tensor.nbytes), tensor)

    def _land(
        self, lane: LaneContext, what: str, tensor: torch.Tensor, layer: int, micro_batch: InFlight
    ) -> torch.Tensor:
        return self._buffers.to_host(lane, self._host.landing(what, layer, micro_batch, tensor), tensor)
