"""The tasks of experts computed apart from their layers: a group's tokens to each place, and what comes back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from engine.device import LaneContext, Mark
from engine.host import HostExperts, HostThreads, PlayedExperts, can_run_on_host
from engine.memory import HostBlock
from engine.model import ExpertsCall, InFlight, PlacedExperts, expert_rows
from engine.tasks.context import BatchContext
from engine.tasks.fetched import FetchedExperts
from engine.tasks.host import ExpertRoom
from sim.schedule import DEFERRED, ExpertPlace, Task


@dataclass(slots=True)
class _OnHost:
    """What of a group is on the host: what goes into its experts, row by row."""

    rows: list[int]
    """Of each of its micro-batches."""
    index: torch.Tensor
    weights: torch.Tensor
    hidden: torch.Tensor | None
    arrived: Mark
    """When it is there, on the lane that copies it."""


class _LayerOnHost:
    """The experts of one layer that the host computes."""

    def __init__(
        self, placed: PlacedExperts, numbers: Sequence[int], tensors: dict[str, torch.Tensor], threads: HostThreads
    ) -> None:
        self._rows = expert_rows(numbers, placed.num_experts).numpy()
        self._count = len(numbers)
        self._experts = HostExperts.of(placed.module, tensors, range(self._count), threads, placed.formats)
        self._expert_bytes = sum(tensor[0].nbytes for tensor in tensors.values())

    def __call__(self, sent: _OnHost, counts: torch.Tensor | None, out: torch.Tensor) -> tuple[torch.Tensor, int]:
        """What they make of a group's tokens, put into `out`, and the bytes of the experts that were used.

        Where something is said of what `counts`, the other pairs of token and expert are left out.
        """
        assert sent.hidden is not None, "experts on the host get hidden states"
        rows = self._rows[sent.index.numpy()]  # by NumPy: less of Python's lock changes hands
        if counts is not None:
            rows[~counts.numpy()] = self._count
        made = self._experts(sent.hidden, torch.from_numpy(rows), sent.weights, out)
        return made, len(set(rows.ravel().tolist()) - {self._count}) * self._expert_bytes


class Experts:
    """Experts of one batch. Methods return the bytes that a task moved, and take the group's micro-batches at work."""

    def __init__(self, batch: BatchContext, add_up: Callable[[torch.Tensor], None]) -> None:
        """`add_up` puts what all ranks have made on the host in place of what this one has."""
        self._batch = batch
        self._add_up = add_up
        self._layout, self._shape = batch.layout, batch.layout.shape
        self._weights = batch.session.weights
        self._activations = batch.activations
        self._on_host: dict[tuple[int, int], _OnHost] = {}  # by the first micro-batch of a group, and its side
        self._made: dict[tuple[int, int], tuple[torch.Tensor, list[int]]] = {}  # by first micro-batch and page
        self._host = ExpertRoom(batch)
        self._fetched = FetchedExperts(batch, self._host)
        threads = batch.session.device_threads
        self._played = None if threads is None else PlayedExperts(threads)
        self._of_layers: dict[int, _LayerOnHost] = {}

    def members(self, task: Task) -> list[InFlight]:
        """The micro-batches of a task's group that have not finished."""
        group = self._shape.group(int(self._layout.group_of[task.micro_batch]))
        mine = (self._batch.carried.of(task._replace(micro_batch=j)) for j in group)
        return [one for one in mine if one is not None]

    def offload_tokens(self, lane: LaneContext, task: Task, group: Sequence[InFlight]) -> int:
        """Experts of all tokens and their weights, and what goes into experts if the host has some."""
        calls = [_call(one, task) for one in group]
        index = self._gather(lane, task, "index", [call.index for call in calls])
        weights = self._gather(lane, task, "weights", [call.weights for call in calls])
        hidden = None
        if self._shape.has_experts(task.layer, ExpertPlace.HOST):
            hidden = self._gather(lane, task, "hidden states", [call.hidden for call in calls])
        self._on_host[self._key(task)] = _OnHost([*map(_rows, calls)], index, weights, hidden, lane.mark())
        return index.nbytes + weights.nbytes + (0 if hidden is None else hidden.nbytes)

    def fetch(self, lane: LaneContext, task: Task, group: Sequence[InFlight]) -> int:
        """Of the experts that wait on the host to be asked for, those that the group uses, to the device."""
        sent = self._on_host[self._key(task)]
        sent.arrived.wait()
        return self._fetched.fetch(lane, task, sent.index)

    def on_host(self, task: Task, group: Sequence[InFlight]) -> int:
        """Experts whose weights are on the host, there. Returns the bytes of those that were used."""
        sent = self._on_host[self._key(task)]
        assert sent.hidden is not None, "experts on the host get hidden states"
        out = self._output_room(task, sent.hidden.nbytes).view(tuple(sent.hidden.shape), sent.hidden.dtype)
        counts = None
        if self._shape.defers(task.step, task.layer):
            late = least_weighted(sent.weights, self._batch.session.run.policy.defer_experts)
            counts = late if task.page == DEFERRED else ~late
        made, num_bytes = self._layer(task.layer)(sent, counts, out)
        self._add_up(made)
        self._made[task.micro_batch, task.page] = made, sent.rows
        return num_bytes

    def load_output(self, lane: LaneContext, task: Task, group: Sequence[InFlight]) -> int:
        """What the host's experts made, to the device."""
        made, sizes = self._made.pop((task.micro_batch, task.page))
        late = task.page == DEFERRED
        name = f"{'deferred ' if late else ''}expert output of host {task.micro_batch}"
        most = self._batch.routed_tokens(int(self._layout.group_of[task.micro_batch]), in_decode=late)
        on_device = self._batch.buffers.on_device(name, tuple(made.shape), made.dtype, made[0].nbytes * most)
        lane.copy_h2d(on_device, made, pinned=self._output_room(task, made.nbytes).locked)
        for one, rows in zip(group, on_device.split_with_sizes(sizes), strict=True):
            if late:
                one.deferred[task.layer] = rows
            else:
                one.output_of_host = rows
        return made.nbytes

    def on_device(self, task: Task, group: Sequence[InFlight]) -> int:
        """Experts that are on the device or came there, and shared ones, once for all tokens of the group."""
        places = self._weights.experts[task.layer]
        if self._shape.streams(task.step, task.layer):
            self._weights.bind(task)
        else:
            self._weights.let_go(task.layer)
        parts = self._fetched.parts(task)
        if not parts and places.shared is None:
            return 0
        with self._activations.working_group(group, task):
            calls = [_call(one, task) for one in group]
            hidden = _together([call.hidden for call in calls])
            index = _together([call.index for call in calls])
            weights = _together([call.weights for call in calls])
            sizes = [len(call.hidden) for call in calls]
            if parts:
                known = not places.formats and can_run_on_host(places.module)
                code = self._played if known else None
                in_prefill = any(one.step == 0 for one in group)
                output = places.compute(parts, hidden, index, weights, in_prefill=in_prefill, in_decode_by=code)
                for one, rows in zip(group, output.split_with_sizes(sizes), strict=True):
                    one.output = rows
            if places.shared is not None:
                for one, rows in zip(group, places.shared(hidden).split_with_sizes(sizes), strict=True):
                    one.put_shared(rows)
        self._fetched.computed(task)
        for one in group:
            self._activations.stopped(one)
        return 0

    def _layer(self, layer: int) -> _LayerOnHost:
        if layer not in self._of_layers:
            placed, threads = self._weights.experts[layer], self._batch.session.kernel.host_threads
            self._of_layers[layer] = _LayerOnHost(placed, *self._weights.on_host(layer, ExpertPlace.HOST), threads)
        return self._of_layers[layer]

    def _gather(self, lane: LaneContext, task: Task, what: str, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """The tensors of a group one behind the other on the host."""
        rows = sum(map(len, tensors))
        shape, dtype = (rows, *tensors[0].shape[1:]), tensors[0].dtype
        first, side = self._key(task)
        block = self._host.exchanged(what, first, sum(tensor.nbytes for tensor in tensors), turn=side)
        there = block.view(shape, dtype)
        for rows_there, tensor in zip(
            there.split_with_sizes([len(tensor) for tensor in tensors]), tensors, strict=True
        ):
            lane.copy_d2h(rows_there, tensor.contiguous(), pinned=block.locked)
            lane.keep(tensor)
        return there

    def _key(self, task: Task) -> tuple[int, int]:
        """Where a group's tokens are on the host."""
        return task.micro_batch, self._shape.side(task.step, task.layer)

    def _output_room(self, task: Task, num_bytes: int) -> HostBlock:
        return self._host.exchanged("output", task.micro_batch, num_bytes, turn=int(task.page == DEFERRED))


def _call(micro_batch: InFlight, task: Task) -> ExpertsCall:
    call = micro_batch.at
    if not isinstance(call, ExpertsCall) or call.layer != task.layer:
        raise RuntimeError(
            f"micro-batch {micro_batch.index} is not at the experts of this layer but at {type(call).__name__}"
        )
    return call


def _rows(call: ExpertsCall) -> int:
    return len(call.hidden)


def least_weighted(weights: torch.Tensor, count: int) -> torch.Tensor:
    """[token, k]: whether it is one of so many of the token's experts that count least; of equal ones the last."""
    order = weights.argsort(dim=-1, descending=True, stable=True)
    return torch.zeros_like(weights, dtype=torch.bool).scatter_(-1, order[:, weights.shape[-1] - count :], True)


def _together(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))
