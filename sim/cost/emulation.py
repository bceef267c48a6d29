"""A device that the host plays: its memory is the host's, and its lanes are threads of one interpreter."""

from sim.cost.pools import DRAM, WHOLE_INTERPRETER, interpreter, link
from sim.cost.sizes import Sizes
from sim.cost.work import Cost, Work
from sim.problem import Emulation
from sim.schedule import LaneKind, Op, Place, Task

EMULATED_TRAFFIC = 2
"""DRAM bytes per byte that an emulated link copies: device memory is host memory."""

COMPUTE = (LaneKind.GPU, LaneKind.CPU)

ARITHMETIC = frozenset({Op.HOST_EXPERTS, Op.DEVICE_EXPERTS})
"""Ops that are a few large products, each in a call that lets go of the interpreter."""
SMALL = ("copy latency", "launch latency")
"""What most of a small copy is."""


class EmulatedCosts:
    """Turns what a task does on a real device into what it takes on an emulated one."""

    def __init__(self, emulation: Emulation, sizes: Sizes) -> None:
        shape = sizes.shape
        streams = any(shape.streamed) or (shape.streams_kv and shape.attention is Place.GPU)
        self._beside_stream = {
            LaneKind.GPU: 1 / emulation.beside_stream - 1 if streams else 0.0,
            LaneKind.CPU: 1 / (emulation.host_beside_stream or 1.0) - 1 if streams else 0.0,
        }
        self._interpreter = interpreter(sizes.hardware.num_devices)
        self._of_calls = float(emulation.interpreter_share)
        self._of_products = self._of_calls if emulation.beside_compute is None else 0.5 / emulation.beside_compute

    def __call__(self, task: Task, work: Work) -> Cost:
        """The cost; lanes get in each other's way in compute, and in copies so small that latency is most of them."""
        kind, rank = task.lane
        if kind in COMPUTE:
            return self._of_compute(task, work)
        if kind in (LaneKind.H2D, LaneKind.D2H):
            work = work._replace(traffic={DRAM: EMULATED_TRAFFIC * work.moved, link(rank): work.moved})
        cost = work.cost()
        return self._beside_others(cost, self._of_calls) if cost.bound in SMALL else cost

    def _of_compute(self, task: Task, work: Work) -> Cost:
        """What it takes beside a stream, and how much of the time it needs what other lanes use."""
        alone_s, kind = sum(work.roofs.values()), task.lane.kind
        slower_s = alone_s * self._beside_stream[kind] if task.step or kind is LaneKind.CPU else 0.0
        work = work._replace(roofs={**work.roofs, "beside a stream": slower_s})
        if kind is LaneKind.GPU:
            work = work._replace(traffic={DRAM: work.moved})
        return self._beside_others(work.cost(), self._of_products if task.op in ARITHMETIC else self._of_calls)

    def _beside_others(self, cost: Cost, share: float) -> Cost:
        return cost._replace(demands=(*cost.demands, (self._interpreter, round(WHOLE_INTERPRETER * share))))
