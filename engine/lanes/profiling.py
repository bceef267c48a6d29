"""Names what a run does in a profile of the PyTorch profiler, so that `pytorch_profile` can read the run back."""

import contextlib
from typing import TYPE_CHECKING

from torch.autograd import profiler

from engine.device import LaneContext
from sim.schedule import Task
from traces.files import batch_range, ended_range, task_range

if TYPE_CHECKING:
    from engine.lanes.task_queue import Perform


def named_batch(origin: str) -> contextlib.AbstractContextManager[object]:
    """A range around a batch on a device of this origin, if a profiler runs."""
    return profiler.record_function(batch_range(origin)) if _profiling() else contextlib.nullcontext()


def named_tasks(perform: "Perform") -> "Perform":
    """`perform`, with a range around each task while a profiler runs."""

    def named(lane: LaneContext, task: Task) -> int | None:
        if not _profiling():
            return perform(lane, task)
        with profiler.record_function(task_range(task.id, task.key, task.lane.kind.value, task.deps)):
            moved = perform(lane, task)
        if moved is not None:
            with profiler.record_function(ended_range(task.id, moved)):
                pass
        return moved

    return named


def _profiling() -> bool:
    """Whether a profiler runs, in any thread; what is public tells of the calling thread alone."""
    return profiler._is_profiler_enabled
