"""How long tasks take of experts that are computed where they are, by how many are in a place, and for so many tokens.

Where all experts are alike a time is linear in their number, from the first on; else it is asked for at some numbers,
of which the next smaller one bounds a time from below.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sim.cost import CostModel, Setup
from sim.planning.bounds.durations import Measure, task_s
from sim.planning.bounds.least_use import LeastSizes
from sim.planning.policies import Floats, Ints, Mix
from sim.problem import Batch, Layer, MicroBatch, Policy, Routing
from sim.schedule import LANE_OF, WHOLE, ExpertPlace, Op, Task

KNOTS = 16
"""Numbers of experts that are asked about where they are not alike."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Seconds over numbers of experts, for several numbers of tokens. `values` [tokens, knot]."""

    knots: Ints
    values: Floats
    linear: bool

    def at(self, which: Ints, count: Ints) -> Floats:
        """Of some tokens, for so many experts each: at least, and none for none. `which` is as `count`, or [..., 1]."""
        which = np.broadcast_to(which, count.shape)
        if self.linear and len(self.knots) > 1:
            low, high = self.values[which, 0], self.values[which, 1]
            share = (count - self.knots[0]) / (self.knots[1] - self.knots[0])
            seconds = low + share * (high - low)
        else:
            below = np.searchsorted(self.knots, count, side="right") - 1
            seconds = np.where(below >= 0, self.values[which, np.maximum(below, 0)], 0.0)
        return np.where(count > 0, seconds, 0.0)


class ExpertTimes:
    """Asks the cost model about one kind of layer with experts."""

    def __init__(self, setup: Setup, layer: Layer, tokens: Sequence[int], measure: Measure = task_s) -> None:
        problem = setup.problem
        self._problem, self._measure = problem, measure
        self._start = float(problem.hardware.link.latency_s) if measure is task_s else 0.0
        """What a copy takes however short it is: seconds, and no joules."""
        self._setup, self._layer, self._tokens = setup, layer, tokens
        self._total = layer.num_experts
        self._model = replace(problem.model, layers=(layer,))
        self._system = setup.schedule.system
        self._alike = problem.routing == Routing()
        places, place = self._system.experts, ExpertPlace
        total, none = self._total, np.zeros(len(tokens))
        host, fetched, device = Mix(0, total, 0), Mix(0, 0, total), Mix(total, 0, 0)
        on_host = bool(places & place.HOST)
        fetches = bool(places & place.FETCHED)
        numbers = [1, total] if self._alike else np.unique(np.linspace(1, total, KNOTS).astype(int)).tolist()
        some = [total] if self._system.whole_layers or not on_host else sorted(set(numbers))
        mine = [Mix(total - at, at, 0) for at in some], [Mix(at, total - at, 0) for at in some]
        self.host = self._curve(Op.HOST_EXPERTS, some, mine[0]) if on_host else self._nothing()
        self.device = self._curve(Op.DEVICE_EXPERTS, some, mine[1])
        asked = sorted(set(numbers)), [Mix(total - at, 0, at) for at in sorted(set(numbers))]
        self.fetch_locked, self.fetch_pageable = (
            self._curve(Op.FETCH_EXPERTS, *asked, pin) if fetches else self._nothing() for pin in (1.0, 0.0)
        )
        self.shared = self._asked(Op.DEVICE_EXPERTS, host) if on_host and layer.shared else none
        self.offload = self._asked(Op.OFFLOAD_TOKENS, host) if on_host else none
        self.offload_routes = self._asked(Op.OFFLOAD_TOKENS, fetched) if fetches else none
        self.load_output = self._asked(Op.LOAD_OUTPUT, host) if on_host else none
        several = total > 1 and bool(places & (place.STREAMED | place.FETCHED))
        more = self._asked(Op.DEVICE_EXPERTS, Mix(1, 0, 0)) - self._asked(Op.DEVICE_EXPERTS, device)
        self.another_place = np.maximum(more, 0.0) if several else none

    def _nothing(self) -> Curve:
        return Curve(np.array([1]), np.zeros((len(self._tokens), 1)), False)

    def _curve(self, op: Op, numbers: list[int], mixes: Sequence[Mix], pin: float = 0.0) -> Curve:
        values = np.stack([self._asked(op, mix, pin) for mix in mixes], axis=1)
        if op is Op.FETCH_EXPERTS:  # copies are whole numbers
            values = np.maximum(values - self._start, 0.0)
        return Curve(np.array(numbers), values, self._alike and len(numbers) > 1)

    def _asked(self, op: Op, mix: Mix, pin: float = 0.0) -> Floats:
        """Seconds of one task. [tokens]."""
        costs, ranks, lane = self._costs(mix, pin), self._setup.num_ranks, LANE_OF[op]
        tasks = (Task(0, op, lane, 1, 0, j, WHOLE) for j in range(len(self._tokens)))
        return np.array([self._measure(costs, task, ranks) for task in tasks])

    def _costs(self, mix: Mix, pin: float) -> CostModel:
        """Of one layer with a micro-batch of each number of tokens, each a group of its own."""
        base, schedule = self._setup.policy, self._setup.schedule
        total = 1 if self._system.whole_layers else self._total
        mine = Mix(mix.resident * total // self._total, mix.on_host, mix.fetched)
        fields = {"weight_bits": base.weight_bits, "kv_bits": base.kv_bits, "pin_weights": pin}
        policy = Policy.usual(schedule, 1, 1, **fields, **mine.fields(self._system, total))
        batch = Batch(tuple(MicroBatch(tokens, tokens, tokens, 1) for tokens in self._tokens), 0, 2)
        shape, hardware = policy.shape(schedule, self._model, len(self._tokens)), self._problem.hardware
        whole, routing = self._problem.model, self._problem.routing
        return CostModel(LeastSizes(schedule, shape, policy, self._model, batch, hardware, routing, whole=whole))
