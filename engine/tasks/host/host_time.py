"""What of a run is the host's: how long the thread of the GPU lane works for a micro-batch's turn in a layer."""

import time
from dataclasses import dataclass

from sim.schedule import Op, Task

Clocks = tuple[int, int]


def clocks_ns() -> Clocks:
    """What the host's clock and the calling thread's CPU time say."""
    return time.perf_counter_ns(), time.thread_time_ns()


@dataclass(slots=True)
class HostTime:
    """The GPU lane's tasks of decode in the thread that gives them to the device.

    Beside an accelerator that is Python and the launching of kernels; where the host plays the device, it is the
    computing too. `cpu_ns` leaves out what the thread waited, for the device or for Python's lock.
    """

    turns: int = 0
    cpu_ns: int = 0
    elapsed_ns: int = 0

    def add(self, task: Task, before: Clocks) -> None:
        """A task of the GPU lane has been done since `clocks_ns` said `before`."""
        if task.step > 0:
            elapsed_ns, cpu_ns = clocks_ns()
            self.elapsed_ns += elapsed_ns - before[0]
            self.cpu_ns += cpu_ns - before[1]
            self.turns += task.op in (Op.POST_ATTN, Op.EXPERTS, Op.ROUTE)

    def to_dict(self) -> dict[str, float]:
        """Seconds a turn as JSON values."""
        turns = max(1, self.turns)
        return {
            "turns": self.turns,
            "cpu_s_per_turn": self.cpu_ns / 1e9 / turns,
            "s_per_turn": self.elapsed_ns / 1e9 / turns,
        }
