"""One layer of one decode step, to be looked at: what each lane does in it."""

from dataclasses import dataclass

from sim.cost import Setup
from sim.schedule import DEFERRED, ENDS_LAYER
from sim.simulation.simulator import Executed, simulate_steps


@dataclass(frozen=True, slots=True)
class LayerView:
    """One layer of one decode step as rank 0 ran it: from the end of the layer before to its own end."""

    start_ns: int
    end_ns: int
    tasks: list[Executed]

    @property
    def length_ms(self) -> float:
        return (self.end_ns - self.start_ns) / 1e6

    @property
    def took(self) -> str:
        """Its length in words, to three digits."""
        return f"{self.length_ms:,.0f} ms" if self.length_ms >= 100 else f"{self.length_ms:.3g} ms"

    def bars(self) -> dict[str, list[tuple[str, float, float]]]:
        """By lane, (op, begin, length) in milliseconds within the view."""
        found: dict[str, list[tuple[str, float, float]]] = {}
        for one in self.tasks:
            begin, end = max(one.start_ns, self.start_ns), min(one.end_ns, self.end_ns)
            bar = (one.task.op.value, (begin - self.start_ns) / 1e6, (end - begin) / 1e6)
            found.setdefault(one.task.lane.kind.value, []).append(bar)
        return found


def layer_view(setup: Setup) -> LayerView:
    """Simulate two decode steps in the middle of the generation, and cut out the middle layer of the second.

    With one layer, or no decode step, the view is the whole of the last step simulated.
    """
    executed: list[Executed] = []
    step = (setup.last_step + 1) // 2
    first = max(step - 1, min(step, 1))
    simulate_steps(setup, first, step + 1, on_task=executed.append)
    layer_ends: dict[int, int] = {}
    for one in executed:
        if one.task.op in ENDS_LAYER and one.task.step == step and one.task.page != DEFERRED:
            layer_ends[one.task.layer] = max(one.end_ns, layer_ends.get(one.task.layer, 0))
    layer = setup.shape.num_layers // 2
    start, end = layer_ends.get(layer - 1, 0), layer_ends[layer]
    seen = [one for one in executed if one.task.lane.rank == 0 and one.end_ns > start and one.start_ns < end]
    return LayerView(start, end, seen)
