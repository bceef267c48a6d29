"""The sums over ranks between tasks, and who goes on behind them."""

from collections.abc import Sequence
from concurrent.futures import Future

import torch

from engine.device import LaneContext, Mark
from engine.model import InFlight, SumNeeded
from engine.tasks.context import BatchContext
from sim.schedule import EXPERTS_SUM, Task


class SumsOfTasks:
    """Sums of one batch. On one device there are none, and nobody waits.

    A micro-batch stands inside its layer while what the layer made is summed. The next task of the device's own lane,
    which waits for that sum, takes it to the layer's end first: only in that lane's thread can it go on.
    """

    def __init__(self, batch: BatchContext) -> None:
        self._batch = batch
        self._sums = batch.session.run.sums
        self._expected: InFlight | None = None
        self._ended: dict[int, Future[Mark]] = {}  # by micro-batch, its last layer

    def is_apart(self, task: Task) -> bool:
        """Whether a sum is that of experts computed apart from their layer, of a group."""
        shape = self._batch.layout.shape
        apart = task.page == EXPERTS_SUM and shape.splits_experts(task.step)
        return bool(apart and shape.experts[task.layer])

    def add_up(self, task: Task, group: Sequence[InFlight]) -> int | None:
        """Puts the sum in place of this rank's part: of a micro-batch, or of what the experts of a group made."""
        if group or self.is_apart(task):
            made = [one for member in group for one in (member.output, member.shared_output) if one is not None]
            return self._add_up(made) if group else None
        micro_batch = self._batch.carried.of(task)
        if micro_batch is None:
            return None
        at = micro_batch.at
        if not isinstance(at, SumNeeded) or (at.layer, at.which) != (task.layer, task.page):
            raise RuntimeError(f"micro-batch {micro_batch.index} has nothing to be summed but is at {at!r}")
        return self._add_up([at.part])

    def _add_up(self, parts: Sequence[torch.Tensor]) -> int:
        assert self._sums is not None, "the schedule of one device has no sums"
        for part in parts:
            self._sums.add_up(part)
        return sum(part.nbytes for part in parts)

    def add_up_on_host(self, made: torch.Tensor) -> None:
        """The same of what the host computes of this rank's share."""
        if self._sums is not None:
            self._sums.add_up_on_host(made)

    def expect(self, micro_batch: InFlight) -> None:
        """A micro-batch stands before the sum of its layer."""
        self._expected = micro_batch
        self._ended[micro_batch.index] = Future()

    def end_layer(self, lane: LaneContext) -> None:
        """Takes who stood there to the end of its layer. Of the device's own lane, behind the sum."""
        micro_batch, self._expected = self._expected, None
        if micro_batch is not None:
            micro_batch.resume()
            self._batch.activations.stopped(micro_batch)
            self._ended[micro_batch.index].set_result(lane.mark())

    def wait_for_layer(self, lane: LaneContext, micro_batch: InFlight) -> None:
        """Until a micro-batch has been taken there; what the lane does from now on comes behind that."""
        if micro_batch.index in self._ended:
            lane.wait(self._ended[micro_batch.index].result())

    def close(self) -> None:
        """Nobody is taken anywhere any more: the device's own lane has ended."""
        for one in self._ended.values():
            if not one.done():
                one.cancel()
