"""Experts that come to the device when tokens ask for them: into room of their own, whence a cache may take them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from engine.device import LaneContext
from engine.memory import CacheTurn
from engine.model import ExpertPart, expert_rows
from engine.tasks.context import BatchContext
from engine.tasks.host import ExpertRoom
from sim.schedule import ExpertPlace, MemoryPart, Task

Rows = Mapping[str, torch.Tensor]
"""Experts one behind the other, by the name of a parameter."""


class _Came(NamedTuple):
    """What is there for a group: experts that came for it, and those that a cache held when it asked."""

    part: ExpertPart
    cached: ExpertPart | None
    room: Rows
    turn: CacheTurn | None


class FetchedExperts:
    """Fetched experts of one batch, by the groups that they came for."""

    def __init__(self, batch: BatchContext, host: ExpertRoom) -> None:
        self._batch, self._host = batch, host
        self._weights = batch.session.weights
        self._came: dict[int, _Came] = {}  # by the first micro-batch of a group
        self._sources: dict[int, dict[int, dict[str, torch.Tensor]]] = {}  # by layer and expert
        self._most = {i: len(self._weights.on_host(i, ExpertPlace.FETCHED)[0]) for i in self._weights.experts}
        self._asked = batch.session.run.anatomy.top_k * batch.most_routed_tokens
        buffer = batch.layout.buffers.get("fetched")
        for layer in self._most if buffer else ():  # at once, so that what does not fit is known before the first task
            for slot in range(buffer.turns if buffer else 0):
                self._room(layer, slot)

    def fetch(self, lane: LaneContext, task: Task, index: torch.Tensor) -> int:
        """The experts that a group uses, one after the other. Returns their bytes."""
        sources, cache = self._sources_of(task.layer), self._weights.caches.get(task.layer)
        used = sorted(set(index.flatten().tolist()))
        turn = cache.plan(used) if cache else None
        missing = turn.missing if turn else [number for number in used if number in sources]
        room = self._room(task.layer, self._slot(task))
        moved = 0
        for place, number in enumerate(missing):
            for name, row in sources[number].items():
                lane.copy_h2d(room[name][place], row, pinned=self._weights.is_locked(task.layer, row))
                moved += row.nbytes
        rows = self._told(lane, task, room, missing, turn)
        resident = self._weights.experts[task.layer].resident
        cached = ExpertPart(resident.parameters, rows[1], _by_slot(turn)) if turn and resident else None
        self._came[task.micro_batch] = _Came(ExpertPart.of(room, rows[0], missing), cached, room, turn)
        return moved + rows.nbytes

    def parts(self, task: Task) -> tuple[ExpertPart, ...]:
        """All experts on the device that a task's group may use."""
        if not self._batch.layout.shape.has_experts(task.layer, ExpertPlace.FETCHED):
            return self._weights.experts[task.layer].parts
        came = self._came[task.micro_batch]
        others = (came.cached,) if came.cached else self._weights.experts[task.layer].parts
        return (*others, came.part)

    def computed(self, task: Task) -> None:
        """The group's experts have been computed: what came for it may go to a cache."""
        came, cache = self._came.get(task.micro_batch), self._weights.caches.get(task.layer)
        if came and came.turn and cache:
            cache.take_in(came.turn, came.room)

    def _sources_of(self, layer: int) -> dict[int, dict[str, torch.Tensor]]:
        """For each expert that may be fetched, what it has of each parameter on the host."""
        if layer not in self._sources:
            found = self._sources[layer] = dict[int, dict[str, torch.Tensor]]()
            for numbers, tensors in self._weights.to_fetch(layer):
                for row, number in enumerate(numbers):
                    found[number] = {name: tensor[row] for name, tensor in tensors.items()}
        return self._sources[layer]

    def _slot(self, task: Task) -> int:
        return int(self._batch.layout.slot_of("fetched", task))

    def _room(self, layer: int, slot: int) -> Rows:
        """Room on the device for as many as a group may ask for, which layers share."""
        room = {}
        for name, tensor in self._weights.on_host(layer, ExpertPlace.FETCHED)[1].items():
            count, most = (min(self._asked, some) for some in (self._most[layer], max(self._most.values())))
            own, shape = f"{MemoryPart.FETCHED_EXPERTS} {slot}, {name}", (count, *tensor.shape[1:])
            room[name] = self._batch.buffers.on_device(own, shape, tensor.dtype, most * tensor[0].nbytes)
        return room

    def _told(
        self, lane: LaneContext, task: Task, room: Rows, missing: Sequence[int], turn: CacheTurn | None
    ) -> torch.Tensor:
        """The device is told where experts are: rows of the room, and rows of the cache."""
        num_experts, count = self._weights.experts[task.layer].num_experts, len(next(iter(room.values())))
        rows = expert_rows(missing, num_experts).unsqueeze(0)
        rows[rows == len(missing)] = count
        if turn is not None:
            held = torch.full((num_experts,), turn.slots)
            held[list(turn.held)] = torch.tensor(list(turn.held.values()))
            rows = torch.stack((rows[0], held))
        name, block = f"rows of fetched experts {self._slot(task)}", self._host.told(self._slot(task), rows.nbytes)
        there = block.view(tuple(rows.shape), rows.dtype).copy_(rows)
        on_device = self._batch.buffers.on_device(name, tuple(rows.shape), rows.dtype)
        lane.copy_h2d(on_device, there, pinned=block.locked)
        return on_device


def _by_slot(turn: CacheTurn) -> list[int]:
    """The experts that a cache holds, slot by slot."""
    return sorted(turn.held, key=lambda number: turn.held[number])
