"""The tasks that copy activations and KV cache between device and host, each with a real copy over the link."""

from engine.device import LaneContext
from engine.model import AttentionCall, CacheNeeded, InFlight, KeysValues, LayerEntry
from engine.tasks.context import BatchContext
from sim.schedule import Task


class Transfers:
    """Copies for the micro-batches of one batch. Methods return the bytes that a task moved."""

    def __init__(self, batch: BatchContext) -> None:
        self._batch = batch
        self._buffers = batch.buffers

    def offload_qkv(self, lane: LaneContext, task: Task, micro_batch: InFlight) -> int:
        """Query, new keys and new values to the host, for attention there."""
        new, whose = micro_batch.take_new(task), f"of micro-batch {micro_batch.index}"
        micro_batch.new_on_host = None if new is None else self._new_to_host(lane, new, whose)
        micro_batch.query_on_host = micro_batch.mask_on_host = None
        moved = 0 if new is None else new.num_bytes
        call = micro_batch.at
        if isinstance(call, AttentionCall) and not call.whole_cache:
            micro_batch.query_on_host = self._buffers.to_host(lane, f"query {whose}", call.query)
            moved += call.query.nbytes
            num_tokens = micro_batch.stores[task.layer].num_tokens + 1
            if call.mask is not None and not self._batch.attention.by_kernel(call, num_tokens):
                micro_batch.mask_on_host = self._buffers.to_host(lane, f"mask {whose}", call.mask)
                moved += call.mask.nbytes
        return moved

    def load_hidden(self, lane: LaneContext, task: Task, micro_batch: InFlight) -> int:
        """In prefill, a waiting micro-batch's hidden states to the device; in decode, what attention gave."""
        if task.step == 0:
            return self._load_prefill_hidden(lane, task, micro_batch)
        if isinstance(micro_batch.at, CacheNeeded):
            return self.load_kv(lane, task, micro_batch, new_tokens=0)
        attended, micro_batch.attended_on_host = micro_batch.attended_on_host, None
        if attended is None:
            return 0
        on_device = self._buffers.on_device(f"attention output {micro_batch.index}", attended.shape, attended.dtype)
        micro_batch.on_its_way = attended
        lane.copy_h2d(on_device, attended, pinned=False)
        micro_batch.attended = (on_device, None)
        return attended.nbytes

    def store_hidden(self, lane: LaneContext, task: Task, micro_batch: InFlight) -> int:
        """Hidden states of a micro-batch that will wait, to the host; their device memory is free then."""
        entry = micro_batch.at
        if not isinstance(entry, LayerEntry):
            raise RuntimeError(f"micro-batch {micro_batch.index} is not at a layer but at {entry!r}")
        name = f"hidden states of micro-batch {micro_batch.index}"
        micro_batch.hidden_on_host = self._buffers.to_host(lane, name, entry.hidden)
        lane.mark().wait()
        self._buffers.let_go(entry.hidden)
        self._batch.activations.stopped(micro_batch)
        return micro_batch.hidden_on_host.nbytes

    def store_kv(self, lane: LaneContext, task: Task, micro_batch: InFlight) -> int:
        """New keys and values to the host's cache."""
        new = micro_batch.take_new(task)
        if new is None:
            return 0
        on_host = self._new_to_host(lane, new, "on their way")
        lane.mark().wait()
        micro_batch.keep(task.layer, on_host, self._buffers.host, "kv cache")
        return on_host.num_bytes

    def _load_prefill_hidden(self, lane: LaneContext, task: Task, micro_batch: InFlight) -> int:
        host = micro_batch.hidden_on_host
        if host is None:
            return 0
        slot = self._batch.layout.slot_of("activation", task)
        on_device = self._buffers.on_device(f"hidden states {slot}", host.shape, host.dtype)
        lane.copy_h2d(on_device, host, pinned=False)
        micro_batch.loaded_hidden = on_device
        return host.nbytes

    def load_kv(self, lane: LaneContext, task: Task, micro_batch: InFlight, new_tokens: int = 1) -> int:
        """The whole KV cache of a layer to the device, for attention there, with room behind it for new tokens."""
        store = micro_batch.stores.get(task.layer)
        if store is None:
            return 0
        slot, loaded = self._batch.layout.slot_of("kv on device", task), []
        for name, tensor in zip(KeysValues._fields, store.content, strict=True):
            batch, heads, tokens, dim = tensor.shape
            shape = (batch, heads, tokens + new_tokens, dim)
            on_device = self._buffers.on_device(f"kv buffer {slot}, {name}", shape, tensor.dtype)
            lane.copy_h2d(on_device[:, :, :tokens], tensor, pinned=False)
            loaded.append(on_device)
        micro_batch.loaded_caches[task.step, task.layer] = KeysValues(*loaded)
        return store.content.num_bytes

    def _new_to_host(self, lane: LaneContext, new: KeysValues, whose: str) -> KeysValues:
        named = zip(KeysValues._fields, new, strict=True)
        return KeysValues(*(self._buffers.to_host(lane, f"new {name} {whose}", tensor) for name, tensor in named))
