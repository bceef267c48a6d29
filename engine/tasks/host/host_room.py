"""Host memory for what a batch's tasks exchange with the device: how much, and what of it is page-locked."""

from collections.abc import Sequence

import torch

from engine.device import aligned_bytes
from engine.memory import HostBlock
from engine.model import HostLayerCache, InFlight, Kept, KeysValues, Store, layer_of
from engine.tasks.context import BatchContext, RunContext
from sim.problem import within_window
from sim.schedule import ExpertPlace, MemoryPart, PipelineShape, Place, SlotLayout, Task, Tier

MASKS = "attention masks"
"""A part that no memory plan names: our kernel needs no masks, only a model's own attention does."""

INDEX_BYTES, WEIGHT_BYTES = 8, 4
"""Of each expert of a token: its number, and what its output counts for."""

OF_EXPERTS = {
    "index": "routed on host",
    "weights": "routed on host",
    "hidden states": "routed on host",
    "output": "output on host",
}
"""What a group exchanges with experts apart from their layers, and the buffer of the schedule that it lies in."""


class HostRoom:
    """The host's side of one batch's copies."""

    def __init__(self, batch: BatchContext) -> None:
        self._run = batch.session.run
        self._blocks = batch.session.host_blocks
        self._layout = batch.layout
        self._on_gpu = batch.layout.shape.attention is Place.GPU
        self._most_prompt_tokens = batch.most_prompt_tokens
        self._most_requests = batch.carried.most_requests

    def take_stores(self, micro_batches: Sequence[InFlight]) -> None:
        """Takes the room of caches whose size is known, before the first task: memory that is new takes long."""
        run, (first, stop) = self._run, self._layout.shape.layers_on_host
        for layer, widths in enumerate(run.anatomy.kv_widths):
            for one in micro_batches if widths and not first <= layer < stop else ():
                kept = layer_of(one.cache, layer) is not None
                rows = len(one.padding) - one.resident_requests if kept else 0
                for name, width in zip(KeysValues._fields, widths or (), strict=True) if rows else ():
                    tokens = within_window(one.capacity, one.window(layer))
                    num_bytes = one.room_bytes(rows * tokens * width * run.model.dtype.itemsize)
                    self._take_store(f"{name} of {_of_layer(layer, one)}", num_bytes, locked=self.locks_caches)

    @property
    def locks_caches(self) -> bool:
        """Whether caches on the host that the model does not read itself are page-locked: they cross the link."""
        return self._on_gpu and self._locks("kv")

    def _take_store(self, name: str, num_bytes: int, *, locked: bool) -> HostBlock:
        return self._blocks.take(MemoryPart.KV_CACHE, name, num_bytes, locked=locked)

    def exchanged(self, what: str, micro_batch: InFlight, num_bytes: int) -> HostBlock:
        """For what attention on the host gets in a turn."""
        name, locked = f"{what} of micro-batch {micro_batch.index}", self._locks("qkv on host")
        return self._blocks.take(MemoryPart.ATTENTION_EXCHANGE, name, micro_batch.room_bytes(num_bytes), locked=locked)

    def mask(self, micro_batch: InFlight, mask: torch.Tensor) -> HostBlock:
        """For an attention mask, which grows by a token a step."""
        tokens = mask.shape[-1]
        name, room_bytes = f"micro-batch {micro_batch.index}", mask.nbytes // tokens * max(tokens, micro_batch.capacity)
        return self._blocks.take(MASKS, name, micro_batch.room_bytes(room_bytes), locked=self._locks("qkv on host"))

    def attended(self, micro_batch: InFlight, num_bytes: int) -> HostBlock:
        """For what attention on the host gives back."""
        name, locked = f"attention output of micro-batch {micro_batch.index}", self._locks("attention on host")
        return self._blocks.take(MemoryPart.ATTENTION_EXCHANGE, name, micro_batch.room_bytes(num_bytes), locked=locked)

    def hidden(self, micro_batch: InFlight, num_bytes: int) -> HostBlock:
        """For the hidden states of a micro-batch that waits in prefill."""
        name, locked = f"micro-batch {micro_batch.index}", self._locks("hidden on host")
        return self._blocks.take(MemoryPart.HIDDEN_STATES, name, num_bytes, locked=locked)

    def hidden_of_layers(self, micro_batch: InFlight, num_bytes: int) -> HostBlock:
        """For the hidden states of a micro-batch on their way into layers on the host and out of them."""
        name, locked = f"micro-batch {micro_batch.index}, layers", self._locks("hidden of host layers")
        return self._blocks.take(MemoryPart.HIDDEN_STATES, name, num_bytes, locked=locked)

    def cache_of_layers(self, layer: int, micro_batch: InFlight) -> HostLayerCache:
        """For the KV cache of a layer that runs on the host."""
        unnamed = iter(KeysValues._fields)

        def allocate(what: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
            num_bytes = torch.Size(shape).numel() * dtype.itemsize
            name = f"{what or next(unnamed)} of {_of_layer(layer, micro_batch)}"
            return self._blocks.take(MemoryPart.KV_CACHE, name, num_bytes, locked=False).view(shape, dtype)

        return HostLayerCache(micro_batch.capacity, allocate, micro_batch.window(layer))

    def landing(self, name: str, layer: int, micro_batch: InFlight, new: torch.Tensor) -> HostBlock:
        """Where the prompts' new keys or values arrive that a task of the host puts into the cache."""
        token_bytes, window = new.nbytes // (len(micro_batch.padding) * new.shape[2]), micro_batch.window(layer)
        room_bytes = token_bytes * within_window(self._most_prompt_tokens, window and window * self._most_requests)
        return self._blocks.take(MemoryPart.KV_BUFFERS, name, room_bytes, locked=self._locks("new kv on host"))

    def crosses_link(self, layer: int, micro_batch: InFlight) -> bool:
        """Whether a layer's cache goes to the device in each step: for attention there, or to a model that reads it."""
        cache = layer_of(micro_batch.cache, layer)
        return self._on_gpu or (cache is not None and not cache.passed_on)

    def store(self, task: Task, micro_batch: InFlight, new: KeysValues) -> Kept:
        """A new cache of a layer on the host: one that crosses the link is page-locked where the schedule says so."""
        crosses = self.crosses_link(task.layer, micro_batch)
        locked = crosses and self._locks("kv" if self._on_gpu else "new kv on host")
        if micro_batch.paged is not None:
            return micro_batch.paged.make(task.layer, new, by_tokens=crosses, locked=locked)
        made: list[HostBlock] = []

        def allocate(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
            num_bytes = micro_batch.room_bytes(torch.Size(shape).numel() * dtype.itemsize)
            name = f"{KeysValues._fields[len(made)]} of {name}"
            made.append(self._take_store(name, num_bytes, locked=locked))
            return made[-1].view(shape, dtype)

        name = _of_layer(task.layer, micro_batch)
        window = micro_batch.window(task.layer)
        store = Store(new, micro_batch.capacity, allocate, name, window=window, by_tokens=crosses)
        store.locked = all(block.locked for block in made)
        micro_batch.stores[task.layer] = store
        return store

    def _locks(self, buffer: str) -> bool:
        return self._layout.buffers[buffer].tier is Tier.PINNED


def _of_layer(layer: int, micro_batch: InFlight) -> str:
    return f"layer {layer} of micro-batch {micro_batch.index}"


class ExpertRoom:
    """The host's side of what groups exchange with experts apart from their layers: there before the first task."""

    def __init__(self, batch: BatchContext) -> None:
        self._blocks = batch.session.host_blocks
        self._layout, shape = batch.layout, batch.layout.shape
        row_bytes = _row_bytes(batch.session.run, self._layout)
        for group in range(shape.num_groups if row_bytes else 0):
            for what, num_bytes in row_bytes.items():
                for turn in range(1 + shape.defers_experts):  # only decode takes turns
                    tokens = batch.routed_tokens(group, in_decode=turn > 0)
                    self.exchanged(what, shape.group(group)[0], tokens * num_bytes, turn=turn)
        if _fetches(shape):
            for slot in range(self._layout.buffers["fetched"].turns):
                self.told(slot, _told_bytes(batch.session.run))

    def exchanged(self, what: str, first: int, num_bytes: int, *, turn: int = 0) -> HostBlock:
        """For one of OF_EXPERTS; `first` is the first micro-batch of the group.

        With deferral two layers are on their way, which take turns; of outputs the second is the deferred one.
        """
        locked = self._layout.buffers[OF_EXPERTS[what]].tier is Tier.PINNED
        name = f"{'next ' * turn}{what} of experts of micro-batch {first}"
        return self._blocks.take(MemoryPart.EXPERT_EXCHANGE, name, num_bytes, locked=locked)

    def told(self, slot: int, num_bytes: int) -> HostBlock:
        """For where the experts are that came into a slot: page-locked, as who copies it also fetches experts."""
        name = f"rows of fetched experts {slot}"
        return self._blocks.take(MemoryPart.EXPERT_EXCHANGE, name, num_bytes, locked=True)


def expert_exchange_bytes(run: RunContext, layout: SlotLayout) -> int:
    """What all groups exchange with experts in decode, if it is page-locked."""
    shape, buffers = layout.shape, layout.buffers
    row_bytes = _row_bytes(run, layout)
    in_decode = not shape.splits_experts(0)
    locked = [n for what, n in row_bytes.items() if in_decode and buffers[OF_EXPERTS[what]].tier is Tier.PINNED]
    rows = [sum(map(run.most_tokens, shape.group(group))) for group in range(shape.num_groups)]
    told_bytes = buffers["fetched"].turns * aligned_bytes(_told_bytes(run)) if _fetches(shape) else 0
    return told_bytes + (1 + shape.defers_experts) * sum(aligned_bytes(count * row) for count in rows for row in locked)


def _row_bytes(run: RunContext, layout: SlotLayout) -> dict[str, int]:
    """Of each of OF_EXPERTS that there is, what one token takes."""
    top_k, hidden_size = run.anatomy.top_k, run.model.config.get_text_config(decoder=True).hidden_size
    hidden_bytes = hidden_size * run.model.dtype.itemsize
    found = dict.fromkeys(OF_EXPERTS, hidden_bytes) | {"index": top_k * INDEX_BYTES, "weights": top_k * WEIGHT_BYTES}
    if not any(places & ExpertPlace.HOST for places in layout.shape.experts):
        del found["hidden states"]
    there = {name for name, buffer in layout.buffers.items() if buffer.tier is not None}
    return {what: num_bytes for what, num_bytes in found.items() if OF_EXPERTS[what] in there}


def _fetches(shape: PipelineShape) -> bool:
    return any(places & ExpertPlace.FETCHED for places in shape.experts)


def _told_bytes(run: RunContext) -> int:
    """For rows of the room and rows of a cache."""
    return 2 * run.anatomy.num_experts * INDEX_BYTES
