"""A micro-batch in flight: its coroutine, and what its tasks leave for each other, on whatever lane they run."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers.cache_utils import Cache

from engine.model.coroutine import GenerateCoroutine
from engine.model.in_flight.calls import row_pieces
from engine.model.kvcache import Allocate, Kept, KeysValues, Paged, Store, layer_of
from sim.schedule import Task

Attended = tuple[torch.Tensor, torch.Tensor | None]
"""What attention returns to the model: output and, if somebody asked, weights."""


@dataclass(slots=True, eq=False, kw_only=True)
class InFlight(GenerateCoroutine):
    """One micro-batch and its tensors between tasks. Dependencies keep lanes from touching one field at a time."""

    cache: Cache
    width: int  # tokens of each prompt, padding included
    capacity: int  # tokens that the cache may come to hold, prompt included
    entered: int = 0  # the step of the schedule in which its prompts are computed
    most_requests: int | None = None  # that its room on the host is made for, where others use it after it
    resident_requests: int = 0  # so many of its requests, the first ones, keep their KV cache on the device
    resident: dict[int, Store] = field(default_factory=dict)  # theirs, by layer
    stores: dict[int, Kept] = field(default_factory=dict)  # on the host, by layer
    paged: Paged | None = None  # where its requests share memory with others, in place of stores
    hidden_on_host: torch.Tensor | None = None
    host_cache: Cache | None = None  # of the layers that run on the host whole
    loaded_hidden: torch.Tensor | None = None
    query_on_host: torch.Tensor | None = None
    new_on_host: KeysValues | None = None
    mask_on_host: torch.Tensor | None = None
    attended_on_host: torch.Tensor | None = None
    on_its_way: torch.Tensor | None = None  # kept alive while it is copied
    attended: Attended | None = None
    output: torch.Tensor | None = None  # of the experts of its layer, what those on the device made
    output_of_host: torch.Tensor | None = None  # and what those on the host made
    deferred: dict[int, torch.Tensor] = field(default_factory=dict)  # what experts made that count late, by their layer
    loaded_caches: dict[tuple[int, int], KeysValues] = field(default_factory=dict)  # by step and layer
    num_awaited: int = 0  # so many of its requests are still computed by others in this step
    computed: torch.Tensor | None = None  # what comes out of the layers for those that are not

    @property
    def at_step(self) -> int:
        """The step of the schedule that it is in, or that it would have been in next when it finished."""
        return self.entered + self.step

    def has_left(self, task: Task) -> bool:
        """Whether it had finished before the task's step."""
        return self.finished and task.step >= self.at_step

    def room_bytes(self, num_bytes: int) -> int:
        """What so many bytes of its own requests take where room is made for others, too."""
        own = len(self.padding)
        return num_bytes if self.most_requests is None else -(-num_bytes // own) * max(own, self.most_requests)

    def take_computed(self, rows: Sequence[int], hidden: torch.Tensor) -> None:
        """What comes out of the layers for some of its requests. Those that nobody computes have zeros."""
        self.num_awaited -= len(rows)
        if len(rows) == len(self.padding):
            self.computed = hidden
            return
        if self.computed is None:
            self.computed = hidden.new_zeros((len(self.padding), *hidden.shape[1:]))
        pieces = list(row_pieces(self.computed, rows))
        for place, piece in zip(pieces, hidden.split_with_sizes([len(one) for one in pieces]), strict=True):
            place.copy_(piece)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each request so far without its padding, the newest one included."""
        return [self.width + self.step - before for before in self.padding]

    def window(self, layer: int) -> int | None:
        """How many tokens the layer's cache keeps of each request; None: all."""
        cache = layer_of(self.cache, layer)
        return None if cache is None else cache.window

    def kept(self, layer: int) -> Kept | None:
        """What of a layer's keys and values is on the host, if there are any."""
        return self.stores.get(layer) if self.paged is None else self.paged.get(layer)

    def new(self, task: Task) -> KeysValues | None:
        """The keys and values that the task's layer made in the task's step."""
        cache = layer_of(self.cache, task.layer)
        return None if cache is None else cache.new.get(task.step - self.entered)

    def take_new(self, task: Task) -> KeysValues | None:
        """The same, once, without what the first requests keep on the device."""
        cache = layer_of(self.cache, task.layer)
        new = None if cache is None else cache.take(task.step - self.entered)
        return None if new is None else new.of_requests(self.resident_requests)

    def keep_resident(self, task: Task, allocate: Allocate) -> None:
        """Adds what the first requests keep to the layer's store on the device, which `allocate` gives its room."""
        new = self.new(task)
        if new is None or not self.resident_requests:
            return
        kept = new.of_requests(0, self.resident_requests)
        if task.layer not in self.resident:
            name = f"kv cache of micro-batch {self.index}"
            window = self.window(task.layer)
            self.resident[task.layer] = Store(kept, self.capacity, allocate, name, window=window)
        self.resident[task.layer].append(kept)

    def drop_old(self, task: Task) -> None:
        """Lets go of what the layer's window drops of the prompts, once they have attended to it."""
        cache = layer_of(self.cache, task.layer)
        if cache is not None:
            cache.drop_old()

    def take_output(self, deferred_to: int | None = None) -> torch.Tensor:
        """What all places made of its tokens in a layer's experts, once, with what an earlier layer deferred to it."""
        late = None if deferred_to is None else self.deferred.pop(deferred_to)
        parts = [one for one in (self.output, self.output_of_host, late) if one is not None]
        self.output = self.output_of_host = None
        if not parts:
            raise RuntimeError("experts have no result")
        for one in parts[1:]:
            parts[0].add_(one)
        return parts[0]

    def take_loaded_cache(self, task: Task) -> KeysValues:
        """The cache that was loaded for the task's layer, once."""
        loaded = self.loaded_caches.pop((task.step, task.layer), None)
        if loaded is None:
            raise RuntimeError("the KV cache is not on the device")
        return loaded
