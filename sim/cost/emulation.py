"""A device that the host plays: its memory is the host's, and its lanes are threads of one interpreter a rank."""

from sim.cost.pools import DRAM, WHOLE_INTERPRETER, interpreter, link
from sim.cost.sizes import Sizes
from sim.cost.work import Cost, Work
from sim.problem import Emulation
from sim.schedule import LaneKind, Place, Task

EMULATED_TRAFFIC = 2
"""DRAM bytes per byte that an emulated link copies: device memory is host memory."""

COMPUTE = (LaneKind.GPU, LaneKind.CPU)


class EmulatedCosts:
    """Turns what a task does on a real device into what it takes on an emulated one."""

    def __init__(self, emulation: Emulation, sizes: Sizes) -> None:
        shape = sizes.shape
        streams = any(shape.streamed) or (shape.streams_kv and shape.attention is Place.GPU)
        self._beside_stream = 1 / emulation.beside_stream - 1 if streams else 0.0
        self._num_devices, self._turn = (
            sizes.hardware.num_devices,
            round(WHOLE_INTERPRETER * emulation.interpreter_share),
        )

    def __call__(self, task: Task, work: Work) -> Cost:
        """The cost; lanes take turns in compute, and in copies so small that latency is most of them."""
        kind, rank = task.lane
        if kind is LaneKind.GPU:
            slower_s = sum(work.roofs.values()) * self._beside_stream if task.step else 0.0
            work = work._replace(roofs={**work.roofs, "beside a stream": slower_s}, traffic={DRAM: work.moved})
        elif kind in (LaneKind.H2D, LaneKind.D2H):
            work = work._replace(traffic={DRAM: EMULATED_TRAFFIC * work.moved, link(rank): work.moved})
        cost = work.cost()
        waits = kind in COMPUTE or cost.bound in ("copy latency", "launch latency")
        turn = (interpreter(self._num_devices, rank), self._turn)
        return cost._replace(demands=(*cost.demands, turn)) if waits else cost
