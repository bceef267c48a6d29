"""Counts the device memory that the model's own code takes: what it holds between tasks, and what a task works with."""

import contextlib
import weakref
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.device import Device
from engine.model import AttentionCall, ExpertsCall, InFlight, LayerCache, LayerEntry, StackEnd, SumNeeded
from sim.schedule import Op, Task

_Passing = list[tuple[StorageWeakRef, int]]
"""Memory that is counted already and dies at some point, and its bytes."""

_NOTHING = contextlib.nullcontext()


class Activations:
    """The accounts of all micro-batches of a batch.

    What a micro-batch holds is measured whenever it stops in prefill. In decode every step with as many requests is
    like the one before: a stop is measured the first time that it is of its kind, and taken to be the same afterwards.
    The working set inside tasks counts while the largest micro-batch is prefilled: no other task
    needs more. To look at every tensor slows a task down several times, so it is measured once for each kind of layer
    (`kinds`: a number per layer) and taken to be the same in those alike. In a stream micro-batches enter later; each
    counts with what the largest so far worked with.
    """

    def __init__(self, device: Device, largest: InFlight | None, kinds: Sequence[int]) -> None:
        self._device = device
        self._largest = largest
        self._most_tokens = 0 if largest is None else _prompt_tokens(largest)
        self._kinds = kinds
        self._working_sets: dict[tuple[Op, int, bool], int] = {}
        self._held: dict[int, int] = {}
        self._entered: dict[int, int] = {}
        self._passing: _Passing = []  # what the largest micro-batch holds that a task may let go of
        self._known_stops: dict[int, dict[Hashable, int]] = {}  # of decode, by micro-batch: what it held there
        self._masks: dict[int, dict[int, tuple[StorageWeakRef, int]]] = {}  # of prompts, by micro-batch and address

    def enter(self, micro_batch: InFlight) -> None:
        """A micro-batch begins, beside others; its number is nobody else's any more."""
        if _prompt_tokens(micro_batch) > self._most_tokens:
            self._most_tokens = _prompt_tokens(micro_batch)
            self._working_sets.clear()
        self._largest = micro_batch
        self._known_stops.pop(micro_batch.index, None)
        self._masks.pop(micro_batch.index, None)
        self._entered.pop(micro_batch.index, None)
        self._count(micro_batch.index, 0)

    def working(self, micro_batch: InFlight, task: Task) -> contextlib.AbstractContextManager[None]:
        """Around a task of the GPU lane: counts its working set where that is largest."""
        if micro_batch is not self._largest or micro_batch.step > 0:
            return _NOTHING
        return self._working(task)

    def working_group(self, group: Sequence[InFlight], task: Task) -> contextlib.AbstractContextManager[None]:
        """The same around a task for several micro-batches: that of the largest one is taken for the largest."""
        return self.working(next((one for one in group if one is self._largest), group[0]), task)

    @contextlib.contextmanager
    def _working(self, task: Task) -> Iterator[None]:
        enters = task.op is Op.PRE_ATTN and task.layer == 0  # computes what comes before all layers too
        alike = task.op, self._kinds[task.layer], enters
        if alike in self._working_sets:
            yield
        else:
            with _WorkingSet(self._passing) as working_set:
                yield
            self._working_sets[alike] = working_set.peak_bytes
        with self._device.memory.holding("working set", self._working_sets[alike]):
            return

    def stopped(self, micro_batch: InFlight) -> None:
        """A micro-batch has stopped: count what it holds."""
        at, index = micro_batch.at, micro_batch.index
        if micro_batch.step == 0 or micro_batch.finished:
            self._count(index, self._measured(micro_batch))
            return
        known = self._known_stops.setdefault(index, {})
        made = micro_batch.attended is None, micro_batch.output is None, micro_batch.shared_output is None
        where = type(at), getattr(at, "which", None), self._kinds[getattr(at, "layer", -1)]
        kind = *where, len(micro_batch.padding), *made
        if kind not in known:
            known[kind] = self._measured(micro_batch)
        self._count(index, known[kind])

    def _measured(self, micro_batch: InFlight) -> int:
        """Bytes of all that a micro-batch holds."""
        at, index = micro_batch.at, micro_batch.index
        tensors: list[torch.Tensor] = []
        if isinstance(at, LayerEntry | StackEnd):
            tensors.append(at.hidden)
            self._entered[index] = at.hidden.untyped_storage().nbytes()
            inside_layer = 0
        else:
            inside_layer = self._entered.get(index, 0)
        if isinstance(at, AttentionCall):
            tensors += [at.query, at.key, at.value]
        if isinstance(at, SumNeeded):
            tensors.append(at.part)
        if isinstance(at, ExpertsCall):
            tensors += [at.hidden, at.index, at.weights]
        if micro_batch.output is not None:
            tensors.append(micro_batch.output)
        if micro_batch.shared_output is not None:
            tensors.append(micro_batch.shared_output)
        if micro_batch.attended is not None:
            tensors.append(micro_batch.attended[0])
        for layer in micro_batch.cache.layers:
            if isinstance(layer, LayerCache):
                tensors += [tensor for new in list(layer.new.values()) for tensor in new]
                tensors += [] if layer.indexer_keys is None else [layer.indexer_keys]
        storages = {storage.data_ptr(): storage for storage in (t.untyped_storage() for t in tensors)}
        if micro_batch is self._largest:
            self._passing = [(StorageWeakRef(one), one.nbytes()) for one in storages.values()]  # type: ignore[no-untyped-call]
        return sum(one.nbytes() for one in storages.values()) + inside_layer + self._masks_bytes(micro_batch)

    def _masks_bytes(self, micro_batch: InFlight) -> int:
        """What says which tokens of its prompts attend to which, for as long as the model's code holds it."""
        at, masks = micro_batch.at, self._masks.setdefault(micro_batch.index, {})
        if isinstance(at, AttentionCall) and at.mask is not None and micro_batch.step == 0:
            storage = at.mask.untyped_storage()
            masks[storage.data_ptr()] = StorageWeakRef(storage), storage.nbytes()  # type: ignore[no-untyped-call]
        alive = [num_bytes for mask, num_bytes in masks.values() if not mask.expired()]  # type: ignore[no-untyped-call]
        return sum(alive)

    def close(self) -> None:
        """Gives everything back."""
        for index in list(self._held):
            self._count(index, 0)

    def _count(self, index: int, num_bytes: int) -> None:
        name = f"activations of micro-batch {index}"
        more = num_bytes - self._held.get(index, 0)
        if more > 0:
            self._device.memory.charge(name, more)
        elif more < 0:
            self._device.memory.refund(name, -more)
        self._held[index] = num_bytes


def _prompt_tokens(micro_batch: InFlight) -> int:
    return len(micro_batch.padding) * micro_batch.width


class _WorkingSet(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The most bytes that tensors made while it is entered held at one time, beyond what was counted and has died."""

    def __init__(self, passing: _Passing) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._passing = passing
        self._tensors: dict[int, int] = {}  # tensors alive, by storage
        self._bytes = 0
        self.peak_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        inputs = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor, inputs)
        return result

    def _add(self, tensor: torch.Tensor, inputs: set[int]) -> None:
        storage = tensor.untyped_storage()
        pointer, num_bytes = storage.data_ptr(), storage.nbytes()
        if pointer not in self._tensors:
            if pointer in inputs or not num_bytes:
                return  # a view of what was there before
            self._bytes += num_bytes
            gone = [held for counted, held in self._passing if counted.expired()]  # type: ignore[no-untyped-call]
            self.peak_bytes = max(self.peak_bytes, self._bytes - sum(gone))
        self._tensors[pointer] = self._tensors.get(pointer, 0) + 1
        weakref.finalize(tensor, self._drop, pointer, num_bytes)

    def _drop(self, pointer: int, num_bytes: int) -> None:
        self._tensors[pointer] -= 1
        if not self._tensors[pointer]:
            del self._tensors[pointer]
            self._bytes -= num_bytes
