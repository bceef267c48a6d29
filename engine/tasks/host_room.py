"""Host memory for what a batch's tasks exchange with the device: how much, and what of it is page-locked."""

import torch

from engine.memory import HostBlock
from engine.model import HostLayerCache, InFlight, KeysValues, Store, layer_of
from engine.tasks.context import BatchContext
from sim.schedule import MemoryPart, Place, Task, Tier

MASKS = "attention masks"
"""A part that no memory plan names: our kernel needs no masks, only a model's own attention does."""


class HostRoom:
    """The host's side of one batch's copies."""

    def __init__(self, batch: BatchContext) -> None:
        self._blocks = batch.session.host_blocks
        self._layout = batch.layout
        self._on_gpu = batch.layout.shape.attention is Place.GPU
        self._most_prompt_tokens = batch.most_prompt_tokens

    def exchanged(self, what: str, micro_batch: InFlight, num_bytes: int) -> HostBlock:
        """For what attention on the host gets in a turn."""
        name, locked = f"{what} of micro-batch {micro_batch.index}", self._locks("qkv on host")
        return self._blocks.take(MemoryPart.ATTENTION_EXCHANGE, name, num_bytes, locked=locked)

    def mask(self, micro_batch: InFlight, mask: torch.Tensor) -> HostBlock:
        """For an attention mask, which grows by a token a step."""
        tokens = mask.shape[-1]
        name, room_bytes = f"micro-batch {micro_batch.index}", mask.nbytes // tokens * max(tokens, micro_batch.capacity)
        return self._blocks.take(MASKS, name, room_bytes, locked=self._locks("qkv on host"))

    def attended(self, micro_batch: InFlight, num_bytes: int) -> HostBlock:
        """For what attention on the host gives back."""
        name, locked = f"attention output of micro-batch {micro_batch.index}", self._locks("attention on host")
        return self._blocks.take(MemoryPart.ATTENTION_EXCHANGE, name, num_bytes, locked=locked)

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
        made: list[HostBlock] = []

        def allocate(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
            name = f"{KeysValues._fields[len(made)]} of layer {layer} of micro-batch {micro_batch.index}"
            num_bytes = torch.Size(shape).numel() * dtype.itemsize
            made.append(self._blocks.take(MemoryPart.KV_CACHE, name, num_bytes, locked=False))
            return made[-1].view(shape, dtype)

        return HostLayerCache(micro_batch.capacity, allocate)

    def landing(self, name: str, micro_batch: InFlight, new: torch.Tensor) -> HostBlock:
        """Where the prompts' new keys or values arrive that a task of the host puts into the cache."""
        token_bytes = new.nbytes // (len(micro_batch.padding) * micro_batch.width)
        room_bytes = token_bytes * self._most_prompt_tokens
        return self._blocks.take(MemoryPart.KV_BUFFERS, name, room_bytes, locked=self._locks("new kv on host"))

    def crosses_link(self, layer: int, micro_batch: InFlight) -> bool:
        """Whether a layer's cache goes to the device in each step: for attention there, or to a model that reads it."""
        cache = layer_of(micro_batch.cache, layer)
        return self._on_gpu or (cache is not None and not cache.passed_on)

    def store(self, task: Task, micro_batch: InFlight, new: KeysValues) -> Store:
        """The host's cache of a layer: one that crosses the link is page-locked where the schedule says so."""
        crosses = self.crosses_link(task.layer, micro_batch)
        locked = crosses and self._locks("kv" if self._on_gpu else "new kv on host")
        made: list[HostBlock] = []

        def allocate(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
            num_bytes = torch.Size(shape).numel() * dtype.itemsize
            name = f"{KeysValues._fields[len(made)]} of {name}"
            made.append(self._blocks.take(MemoryPart.KV_CACHE, name, num_bytes, locked=locked))
            return made[-1].view(shape, dtype)

        name = f"layer {task.layer} of micro-batch {micro_batch.index}"
        store = Store(new, micro_batch.capacity, allocate, name, by_tokens=crosses)
        store.locked = all(block.locked for block in made)
        return store

    def _locks(self, buffer: str) -> bool:
        return self._layout.buffers[buffer].tier is Tier.PINNED
