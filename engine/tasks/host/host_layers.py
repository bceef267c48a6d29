"""Layers that run on the host whole, by the model's own code on its own weights there."""

from typing import Any

import torch
from transformers.cache_utils import Cache

from engine.device import LaneContext, intra_op_threads
from engine.model import HostCall, InFlight, LayerEntry, StackEnd, host_cache_for
from engine.tasks.context import BatchContext
from engine.tasks.host.host_room import HostRoom
from sim.schedule import Task


class HostLayers:
    """Their tasks for the micro-batches of one batch. Methods return the bytes that a task moved.

    The model has passed these layers by then, so that a micro-batch stops behind them; its hidden state there is what
    went into the first of them, until what the last one makes of it is put in its place.
    """

    def __init__(self, batch: BatchContext) -> None:
        self._batch = batch
        self._buffers = batch.buffers
        self._host = HostRoom(batch)
        self._last = batch.layout.shape.layers_on_host[1] - 1

    def are_at(self, task: Task) -> bool:
        """Whether a copy of hidden states leads into these layers, or out of them."""
        first, stop = self._batch.layout.shape.layers_on_host
        return first <= task.layer < stop

    def enter(self, lane: LaneContext, task: Task, micro_batch: InFlight) -> int:
        """Hidden states to the host, and with them masks and positions, whatever of them is on the device."""
        hidden = _stop(micro_batch).hidden
        block = self._host.hidden_of_layers(micro_batch, hidden.nbytes)
        micro_batch.hidden_on_host = self._buffers.to_host(lane, block, hidden)
        known: dict[int, torch.Tensor] = {}
        micro_batch.host_calls = {
            layer: HostCall(call.forward, _on_host(call.args, known), _on_host(call.kwargs, known))
            for layer, call in micro_batch.host_calls.items()
        }
        return hidden.nbytes

    def run(self, task: Task, micro_batch: InFlight) -> int:
        """One layer. Returns the bytes of its hidden states."""
        call, hidden = micro_batch.host_calls.pop(task.layer), micro_batch.hidden_on_host
        if hidden is None:
            raise RuntimeError(f"micro-batch {micro_batch.index} has no hidden states on the host")
        cache = self._cache(micro_batch)
        args, kwargs = (_with_cache(given, cache) for given in (call.args, call.kwargs))
        with intra_op_threads(self._batch.session.kernel.threads, 1):  # the lane has one, the kernel's own sleep
            output = call.forward(hidden, *args, **kwargs)
        output = output[0] if isinstance(output, tuple) else output
        if task.layer == self._last:
            block = self._host.hidden_of_layers(micro_batch, output.nbytes)
            output = block.view(tuple(output.shape), output.dtype).copy_(output)
        micro_batch.hidden_on_host = output
        return int(output.nbytes)

    def leave(self, lane: LaneContext, task: Task, micro_batch: InFlight) -> int:
        """Hidden states behind the last of these layers to the device, in place of what went in."""
        hidden, left = _stop(micro_batch).hidden, micro_batch.hidden_on_host
        if left is None:
            raise RuntimeError(f"micro-batch {micro_batch.index} has no hidden states on the host")
        micro_batch.hidden_on_host, micro_batch.on_its_way = None, left
        lane.copy_h2d(hidden, left, pinned=self._host.hidden_of_layers(micro_batch, left.nbytes).locked)
        return left.nbytes

    def _cache(self, micro_batch: InFlight) -> Cache:
        if micro_batch.host_cache is None:
            model = self._batch.session.run.model
            micro_batch.host_cache = host_cache_for(model, lambda at: self._host.cache_of_layers(at, micro_batch))
        return micro_batch.host_cache


def _stop(micro_batch: InFlight) -> LayerEntry | StackEnd:
    at = micro_batch.at
    if not isinstance(at, LayerEntry | StackEnd):
        raise RuntimeError(f"micro-batch {micro_batch.index} is not behind a layer but at {type(at).__name__}")
    return at


def _on_host(given: Any, known: dict[int, torch.Tensor]) -> Any:
    """Tensors of a call on the host; one that several layers get goes there once."""
    if isinstance(given, torch.Tensor):
        if id(given) not in known:
            known[id(given)] = given if given.device.type == "cpu" else given.cpu()
        return known[id(given)]
    if isinstance(given, tuple | list):
        return type(given)(_on_host(one, known) for one in given)
    if isinstance(given, dict):
        return {name: _on_host(one, known) for name, one in given.items()}
    return given


def _with_cache(given: Any, cache: Cache) -> Any:
    """What a call is given, with another cache."""
    if isinstance(given, tuple):
        return tuple(cache if isinstance(one, Cache) else one for one in given)
    return {name: cache if isinstance(one, Cache) else one for name, one in given.items()}
