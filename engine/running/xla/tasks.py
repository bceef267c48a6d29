"""What each op does to arrays of JAX: copies between memories, programs on the device, attention on the host."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from engine.device import LaneContext, XlaDevice, XlaLane
from engine.running.xla import model
from engine.running.xla.host_cache import HostCache, Numbers
from engine.running.xla.micro_batch import XlaMicroBatch
from engine.running.xla.model import LayerParameters, XlaFamily
from engine.running.xla.slots import Content, Slots
from engine.running.xla.weights import Page, XlaWeights
from sim.schedule import WHOLE, Access, LaneKind, Op, SlotLayout, Task, Tier
from traces.errors import InputError

LayerFunction = Callable[..., Any]


class XlaTasks:
    """Does the tasks of one batch. Every array is in a slot of the schedule's, or stays for the whole batch."""

    def __init__(
        self,
        family: XlaFamily,
        weights: XlaWeights,
        layout: SlotLayout,
        micro_batches: Sequence[XlaMicroBatch],
        device: XlaDevice,
    ) -> None:
        self._family, self._weights, self._layout, self._device = family, weights, layout, device
        self._micro_batches = micro_batches
        self.slots = Slots(layout, device)
        self._do: dict[Op, Callable[[XlaLane, Task], int]] = {
            Op.PIN_WEIGHTS: self._pin,
            Op.LOAD_WEIGHTS: self._load_weights,
            Op.LOAD_WEIGHTS_PAGEABLE: self._load_weights,
            Op.PRE_ATTN: self._pre_attn,
            Op.OFFLOAD_QKV: self._copy,
            Op.LOAD_HIDDEN: self._copy,
            Op.STORE_HIDDEN: self._copy,
            Op.LOAD_KV: self._load_kv,
            Op.STORE_KV: self._store_kv,
            Op.ATTN: self._attn,
            Op.POST_ATTN: self._post_attn,
            Op.HEAD: self._head,
        }

    def check(self, schedule: str, ops: Iterable[Op]) -> None:
        """Raises InputError for a schedule with an op that is not written here."""
        if unknown := sorted(set(ops) - self._do.keys()):
            raise InputError(f"jax: {schedule} issues {unknown[0]}, which is not written in JAX: take another schedule")

    def __call__(self, lane: LaneContext, task: Task) -> int:
        """Asks XLA for what a task does. Returns the bytes that it moves."""
        assert isinstance(lane, XlaLane)
        return self._do[task.op](lane, task)

    # weights ------------------------------------------------------------------------------------------------------

    def _pin(self, lane: XlaLane, task: Task) -> int:
        (staged,) = self._layout.accesses(task).writes
        return self._bring(lane, staged, self._pages(task))

    def _load_weights(self, lane: XlaLane, task: Task) -> int:
        accesses = self._layout.accesses(task)
        (slots,) = accesses.writes
        staged = [page for access in accesses.reads for held in self.slots.read_all(access) for page in _arrays(held)]
        return self._bring(lane, slots, staged or self._pages(task))

    def _pages(self, task: Task) -> Sequence[Page]:
        pages = self._weights.layers[task.layer].pages
        return pages if task.page == WHOLE else pages[task.page : task.page + 1]

    def _bring(self, lane: XlaLane, into: Access, pages: Sequence[Page]) -> int:
        self.slots.empty(into)
        for at, page in enumerate(pages):
            self._put(lane, into, (page,), at)
        return sum(page.nbytes for page in pages)

    # copies -------------------------------------------------------------------------------------------------------

    def _copy(self, lane: XlaLane, task: Task) -> int:
        accesses = self._layout.accesses(task)
        (source,) = (access for access in accesses.reads if access.when)
        (target,) = (access for access in accesses.writes if access.when)
        self.slots.empty(target)
        return self._put(lane, target, _arrays(self.slots.read(source)))

    def _load_kv(self, lane: XlaLane, task: Task) -> int:
        (source,), (target,) = self._layout.accesses(task)
        self.slots.empty(target)
        cache = self.slots.read(source)
        assert isinstance(cache, HostCache)
        return self._put(lane, target, cache.arrays)

    def _store_kv(self, lane: XlaLane, task: Task) -> int:
        (source,), (target,) = self._layout.accesses(task)
        new = _arrays(self.slots.read(source))
        landed = [self._device.put(array, Tier.PINNED) for array in new]
        keys, values = map(np.asarray, landed)
        self._cache(task, target, keys).store(keys, values, self._of(task).at(task.step))
        for array in landed:
            array.delete()
        return keys.nbytes + values.nbytes

    def _put(self, lane: XlaLane, into: Access, content: Sequence[Page], page: int = 0) -> int:
        tier = self._layout.buffers[into.buffer].tier
        copies = tuple(self._device.put(one, tier) for one in content)
        self.slots.write(into, copies, page)
        lane.gave(*copies)
        return sum(one.nbytes for one in content)

    # programs -----------------------------------------------------------------------------------------------------

    def _pre_attn(self, lane: XlaLane, task: Task) -> int:
        one, reads, writes = self._of(task), self._reads(task), self._writes(task)
        self.slots.empty(writes["qkv"])
        place = _hidden(writes if task.step == task.layer == 0 else reads)
        if task.step == task.layer == 0:
            self.slots.empty(place)
            self.slots.write(place, (self._run(lane, "embed", model.embed, self._weights.table, one.ids),))
        (hidden,) = _arrays(self.slots.read(place))
        given = hidden, self._place(task), one.padding_there, self._weights.inverse_frequencies
        self.slots.write(writes["qkv"], self._of_layer(lane, task, model.pre_attn, *given))
        return 0

    def _post_attn(self, lane: XlaLane, task: Task) -> int:
        reads, target = self._reads(task), _hidden(self._writes(task))
        given = [array for one in (_hidden(reads), reads["attention"]) for array in _arrays(self.slots.read(one))]
        made = self._of_layer(lane, task, model.post_attn, *given, donates=True)
        self.slots.empty(target)
        self.slots.write(target, (made,))
        return 0

    def _head(self, lane: XlaLane, task: Task) -> int:
        (source,), (target,) = self._layout.accesses(task)
        (hidden,), weights = _arrays(self.slots.read(source)), self._weights
        function = partial(model.head, self._family)
        given = weights.norm, weights.head, weights.table, hidden
        tokens, entering = self._run(lane, ("head", self._family), function, *given)
        self.slots.empty(target)
        self.slots.write(target, (entering,))
        self._of(task).add(tokens)
        return 0

    # attention ----------------------------------------------------------------------------------------------------

    def _attn(self, lane: XlaLane, task: Task) -> int:
        if task.lane.kind is LaneKind.CPU:
            return self._attend_on_host(lane, task)
        reads, writes = self._reads(task), self._writes(task)
        query, keys, values = _arrays(self.slots.read(reads["qkv"]))
        self.slots.empty(writes["attention"])
        attend = self._attend_cached if task.step else self._attend_prompt
        attended = attend(lane, task, query, keys, values)
        self.slots.write(writes["attention"], (attended,))
        if "new kv" in writes:
            self.slots.empty(writes["new kv"])
            self.slots.take(reads["qkv"])
            self.slots.write(writes["new kv"], (keys, values))
            query.delete()
        return 0

    def _attend_prompt(self, lane: XlaLane, task: Task, *qkv: jax.Array) -> jax.Array:
        one, stays = self._of(task), self._stays(task, self._writes(task))
        function = partial(model.attend_prompt, self._family)
        attended: jax.Array = self._run(lane, ("attend prompt", self._family), function, *qkv, one.padding_there)
        if stays is not None:
            function = partial(model.begin_cache, one.capacity)
            self.slots.empty(stays)
            self.slots.write(stays, self._run(lane, ("begin cache", one.capacity), function, *qkv[1:]))
        return attended

    def _attend_cached(self, lane: XlaLane, task: Task, *qkv: jax.Array) -> jax.Array:
        one, reads, writes = self._of(task), self._reads(task), self._writes(task)
        source, stays = reads.get("kv on device") or self._stays(task, reads), self._stays(task, writes)
        assert source is not None
        cache, function = _arrays(self.slots.read(source)), partial(model.attend_cached, self._family)
        attended: jax.Array
        attended, joined = self._run(
            lane, ("attend cached", self._family), function, *qkv, self._place(task), one.padding_there, *cache,
            donated=(5, 6),
        )  # fmt: skip
        self.slots.empty(source)
        if stays is not None:
            self.slots.write(stays, joined)
        else:  # its new tokens go to the host alone
            for array in joined:
                array.delete()
        return attended

    def _stays(self, task: Task, accesses: dict[str, Access]) -> Access | None:
        """The cache of a micro-batch that stays on the device."""
        name = "resident kv" if self._layout.shape.streams_kv else "kv"
        return None if self._layout.shape.kv_on_host(task.micro_batch) else accesses[name]

    def _attend_on_host(self, lane: XlaLane, task: Task) -> int:
        one, reads, writes = self._of(task), self._reads(task), self._writes(task)
        query, keys, values = map(np.asarray, _arrays(self.slots.read(reads["qkv on host"])))
        cache, at = self.slots.read(reads["kv"]), one.at(task.step)
        assert isinstance(cache, HostCache)
        cache.store(keys, values, at)
        attended = cache.attend(query, at + 1, one.padding, self._family.scale)
        self.slots.rename(writes["kv"])
        self.slots.empty(writes["attention on host"])
        self._put(lane, writes["attention on host"], (attended,))
        return 0

    def _cache(self, task: Task, access: Access, keys: Numbers) -> HostCache:
        """The cache on the host that a task writes to; in prefill a new one."""
        if task.step:
            self.slots.rename(access)
            cache = self.slots.read(access)
            assert isinstance(cache, HostCache)
            return cache
        num_requests, num_kv_heads, _, width = keys.shape
        self.slots.empty(access)
        made = HostCache((num_requests, num_kv_heads, self._of(task).capacity, width), keys.dtype)
        self.slots.write(access, made)
        return made

    # what tasks share ---------------------------------------------------------------------------------------------

    def _run(
        self,
        lane: XlaLane,
        name: Hashable,
        function: Callable[..., Any],
        *arguments: Any,
        donated: tuple[int, ...] = (),
    ) -> Any:
        made, done = self._device.programs(name, function, *arguments, donated=donated)
        lane.gave(done)
        return made

    def _of_layer(self, lane: XlaLane, task: Task, function: LayerFunction, *arrays: Any, donates: bool = False) -> Any:
        """What a function of a layer gives; it may use the memory of its first array for it."""
        layer, family, streamed = self._weights.layers[task.layer], self._family, self._reads(task).get("weights")
        held = [] if streamed is None else self.slots.read_all(streamed)
        pages = [page for one in held for page in _arrays(one)]
        layout = layer.layout

        def program(resident: dict[str, jax.Array], pages: Sequence[jax.Array], *given: jax.Array) -> Any:
            return function(family, LayerParameters(layout, resident, pages), *given)

        name = function.__name__, family, layout
        return self._run(lane, name, program, layer.resident, pages, *arrays, donated=(2,) if donates else ())

    def _reads(self, task: Task) -> dict[str, Access]:
        return {access.buffer: access for access in self._layout.accesses(task).reads if access.when}

    def _writes(self, task: Task) -> dict[str, Access]:
        return {access.buffer: access for access in self._layout.accesses(task).writes if access.when}

    def _of(self, task: Task) -> XlaMicroBatch:
        return self._micro_batches[task.micro_batch]

    def _place(self, task: Task) -> np.int32:
        return np.int32(self._of(task).at(task.step))


def _hidden(accesses: dict[str, Access]) -> Access:
    """Hidden states wait in one of two buffers."""
    return accesses["activation"] if "activation" in accesses else accesses["hidden"]


def _arrays(content: Content) -> tuple[jax.Array, ...]:
    assert not isinstance(content, HostCache), "a cache on the host comes over the link as LoadKV says"
    return content
