"""How long each kind of task takes a policy of a space, asked of the cost model once for all policies that share it.

What is asked may be something else that a task takes, as its joules: a `Measure`.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from sim.cost import CPU_CORES, DRAM, GROWS_WITH_CONTEXT, CostModel, Demands, Setup, fetches_modules
from sim.planning.bounds.least_use import LeastSizes
from sim.planning.policies import Candidates, Floats, Ints, locked_bytes, streamed_bytes
from sim.problem import MicroBatch, Model, Problem
from sim.schedule import CPU, GPU, H2D, LANE_OF, NET, NONE, WHOLE, Op, Place, Task
from sim.simulation import fair_rates

SEGMENTS = 4
"""Stretches that decode is cut into."""

LONG = 16
"""Decode steps from which on several segments gain more than their seams lose."""

DECODE_OPS = (Op.PRE_ATTN, Op.OFFLOAD_QKV, Op.ATTN, Op.LOAD_HIDDEN, Op.POST_ATTN, Op.HEAD, Op.LOAD_KV, Op.STORE_KV)
PREFILL_OPS = (Op.PRE_ATTN, Op.ATTN, Op.POST_ATTN, Op.HEAD, Op.LOAD_HIDDEN, Op.STORE_HIDDEN, Op.STORE_KV)
PLACED_OPS = frozenset({Op.ATTN, Op.LOAD_KV, Op.STORE_KV})
"""Ops whose cost depends on where attention runs and the KV cache lives."""
WEIGHT_OPS = (Op.LOAD_WEIGHTS, Op.LOAD_WEIGHTS_PAGEABLE, Op.PIN_WEIGHTS)

Measure = Callable[[CostModel, Task, int], float]
"""What one rank's task takes where so many ranks do the same."""

MEAN, LEAST, MOST = 0, 1, 2
"""Of which micro-batch a duration is: where all are alike they are one."""

EVEN = 0.05
"""Relative spread of the tokens of micro-batches up to which their mean stands for them."""


def task_s(costs: CostModel, task: Task, num_ranks: int) -> float:
    """One rank's time, at the rate it has beside its twins on the other ranks: alike, they do the same at all times."""
    cost = costs(task)
    return cost.duration_ns * 1e-9 / (1.0 if task.lane is NET else _rate(cost.demands, costs, num_ranks))


def _rate(demands: Demands, costs: CostModel, num_ranks: int) -> float:
    """The rate of a task that runs on all ranks at once, as far as the host's pools decide it."""
    if num_ranks == 1:
        return 1.0
    of_host = tuple(one for one in demands if one[0] in (DRAM, CPU_CORES))
    return fair_rates([of_host] * num_ranks, costs.capacities)[0]


class Times:
    """Durations of a micro-batch's tasks, in seconds, taken from the cost model itself; prefill is one segment."""

    def __init__(self, space: Candidates, measure: Measure = task_s) -> None:
        self.space, self._measure = space, measure
        self.model = space.problem.model
        self.counts = np.array(self.model.layer_counts, dtype=float)
        shapes = [setup.shape for setup in space.batch_setups]
        self.n = space.of_batches([shape.num_micro_batches for shape in shapes])
        self.on_cpu = np.array([shape.attention is Place.CPU for shape in shapes])[space.batch]
        self.streams_kv = np.array([shape.streams_kv for shape in shapes])[space.batch]
        self.offloads = np.array([shape.offloads_hidden for shape in shapes])[space.batch]
        self.used, self._where = np.unique(space.batch, return_inverse=True)
        self.segments = segments(space.problem)
        self.weights = np.array([steps for _, steps in self.segments], dtype=float)
        self._tables = self._fill()
        self._streamed = _streamed(space)
        self._locked = locked_bytes(self._streamed, space.locked[:, None])
        self._pieces = {op: self._piece(op) for op in WEIGHT_OPS}

    def of(self, phase: str, op: Op, which: int = MEAN) -> Floats:
        """Seconds of one task, of the mean, the shortest or the longest micro-batch. [row, layer kind, segment]."""
        return np.asarray(self._tables[phase][op][self._where, which])

    def whole_weights(self, op: Op) -> Floats:
        """Seconds of a layer's streamed weights as one piece; 0 where none stream. [row, layer kind, 1]."""
        return self._weights(op, np.ones(len(self.space)))

    def paged_weights(self, op: Op) -> Floats:
        """As `whole_weights`, in pages."""
        return self._weights(op, self.space.pages.astype(float))

    def last_page_staged(self) -> Floats:
        """Seconds to stage a layer's last page: no other has more to stage. [row, layer kind, 1]."""
        latency, per_byte = self._pieces[Op.PIN_WEIGHTS]
        pages = self.space.pages[:, None]
        staged = np.minimum(self._streamed - self._locked, self._streamed / pages)
        seconds = np.where(self._streamed > 0, latency + staged * per_byte - 1e-9, 0.0)
        return np.maximum(seconds, 0.0)[..., None]

    def streams(self) -> Floats:
        """1 where a layer has weights that stream. [row, layer kind, 1]."""
        return np.asarray(self._streamed > 0, dtype=float)[..., None]

    def over_layers(self, amount: Floats) -> Floats:
        """Sum over all layers. [row, segment]."""
        return np.asarray(np.einsum("rks,k->rs", amount, self.counts))

    def of_layer(self, amount: Floats, layer: int) -> Floats:
        """One layer's amount. [row, segment]."""
        return np.asarray(amount[:, self.model.layer_kinds[layer]])

    def _weights(self, op: Op, pieces: Floats) -> Floats:
        (latency, per_byte), (_, locked_per_byte) = self._pieces[op], self._pieces[Op.LOAD_WEIGHTS]
        locked, others = self._locked, self._streamed - self._locked
        in_place = 0.0 if op is Op.PIN_WEIGHTS else locked * locked_per_byte
        seconds = pieces[:, None] * latency + in_place + others * per_byte
        seconds = np.where(self._streamed > 0, seconds - 1e-9 * pieces[:, None], 0.0)  # durations are whole ns
        return np.maximum(seconds, 0.0)[..., None]

    def _piece(self, op: Op) -> tuple[Floats, Floats]:
        """(seconds a piece, seconds a byte) of each layer kind, from two sizes. [layer kind]."""
        base = self.space.batch_setups[0]
        if fetches_modules(base.schedule, base.problem.hardware):
            return self._modules(op)
        values = _two_values(self.space)
        few = [_with_experts(base, experts) for experts in values]
        kinds = self.model.distinct_layers
        one_each = replace(self.model, layers=kinds)
        costs = [_costs(one, one_each, one.batch.micro_batches) for one in few]
        seconds = [
            [_asked(self._measure, *of, op, 1, kind, 0) for kind in range(len(kinds))]
            for of in zip(few, costs, strict=True)
        ]
        sizes = [_bytes_over_link(one) for one in few]
        (slow, quick), (large, small) = np.array(seconds), np.array(sizes, dtype=float)
        two = large > small
        size, took = np.where(two, (large - small, slow - quick), (large, slow))
        per_byte = np.divide(took, size, out=np.zeros(len(kinds)), where=size > 0)
        return np.where(two, np.maximum(0.0, slow - per_byte * large), 0.0), per_byte

    def _modules(self, op: Op) -> tuple[Floats, Floats]:
        """As `_piece` where modules come alone, each with its latency: the fewest seconds a byte of any batch."""
        kinds = self.model.distinct_layers
        one_each = replace(self.model, layers=kinds)
        least = np.full(len(kinds), np.inf)
        batches = {one.batch.num_requests: one for one in self.space.batch_setups}.values()
        for setup in (_with_experts(one, count) for one in batches for count in (0, self.model.num_experts)):
            costs, sizes = _costs(setup, one_each, setup.batch.micro_batches), _bytes_over_link(setup)
            for kind, size in enumerate(sizes):
                if size:
                    asked = _asked(self._measure, setup, costs, op, 1, kind, 0)
                    least[kind] = min(least[kind], asked / size)
        return np.zeros(len(kinds)), np.where(np.isinf(least), 0.0, least)

    def _fill(self) -> dict[str, dict[Op, Floats]]:
        """Ask the cost model, one distinct micro-batch after the other. [used batch, which, layer kind, segment]."""
        phases = (("prefill", PREFILL_OPS, [0]), ("decode", DECODE_OPS, [step for step, _ in self.segments]))
        size, kinds = len(self.used), len(self.counts)
        tables = {phase: {op: np.zeros((size, 3, kinds, len(steps))) for op in ops} for phase, ops, steps in phases}
        known: dict[tuple[object, ...], list[float]] = {}
        one_each = replace(self.model, layers=self.model.distinct_layers)
        for at, batch in enumerate(self.used):
            asked = MicroBatchTimes(self.space.batch_setups[batch], one_each, known, self._measure)
            for phase, ops, steps in phases:
                for op in ops:
                    if steps and asked.happens(op, in_prefill=phase == "prefill"):
                        tables[phase][op][at] = asked.durations(op, steps)
        return tables


class MicroBatchTimes:
    """Durations of one batch's micro-batches; what is known from another batch is not asked again."""

    def __init__(
        self, setup: Setup, one_each: Model, known: dict[tuple[object, ...], list[float]], measure: Measure = task_s
    ) -> None:
        self._setup, self._one_each, self._known, self._measure = setup, one_each, known, measure
        self._batches, self._counts = _averaged(setup.batch.micro_batches)
        self._place = (setup.policy.attention, setup.policy.kv_on_device)
        self._costs: CostModel | None = None

    def happens(self, op: Op, *, in_prefill: bool) -> bool:
        """Whether there are such tasks."""
        shape = self._setup.shape
        on_cpu = shape.attention is Place.CPU
        if op in (Op.LOAD_KV, Op.STORE_KV):
            return shape.streams_kv and (in_prefill or not on_cpu)
        if op is Op.OFFLOAD_QKV:
            return on_cpu
        if op in (Op.LOAD_HIDDEN, Op.STORE_HIDDEN):
            return shape.offloads_hidden if in_prefill else on_cpu
        return True

    def durations(self, op: Op, steps: list[int]) -> Floats:
        """Seconds of one task. [which, layer kind, step]."""
        kinds = range(self._one_each.num_layers)
        every = np.array([[self._seconds(op, steps, kind, j) for kind in kinds] for j in range(len(self._batches))])
        if len(every) == 1:
            return np.repeat(every, 3, axis=0)
        return np.stack((np.average(every, axis=0, weights=self._counts), every.min(axis=0), every.max(axis=0)))

    def _seconds(self, op: Op, steps: list[int], kind: int, j: int) -> list[float]:
        place = self._place if op in PLACED_OPS else ()
        in_prefill, one = steps[0] == 0, self._batches[j]
        tokens = one if in_prefill or op in GROWS_WITH_CONTEXT else one.num_requests
        key = (op, in_prefill, kind, tokens, place)
        if key not in self._known:
            self._costs = self._costs or _costs(self._setup, self._one_each, self._batches)
            asked = steps if op in GROWS_WITH_CONTEXT else steps[:1]
            found = [_asked(self._measure, self._setup, self._costs, op, step, kind, j) for step in asked]
            self._known[key] = found * (len(steps) // len(found))
        return self._known[key]


def _averaged(batches: Sequence[MicroBatch]) -> tuple[tuple[MicroBatch, ...], list[int]]:
    """Different micro-batches and how many there are of each; those that are about even count as their mean.

    Where a duration is not convex in the tokens, that is wrong by no more than the square of their spread; at one of a
    class's measured numbers of tokens, where the slope changes, by its change times the spread.
    """
    alike: dict[int, list[MicroBatch]] = {}
    for one in batches:
        alike.setdefault(one.num_requests, []).append(one)
    found: Counter[MicroBatch] = Counter()
    for some in alike.values():
        tokens = [one.prompt_tokens for one in some]
        if min(tokens) < max(tokens) <= min(tokens) * (1 + EVEN):
            found[_mean(some)] += len(some)
        else:
            found.update(some)
    return tuple(found), list(found.values())


def _mean(some: Sequence[MicroBatch]) -> MicroBatch:
    names = ("prompt_tokens", "prompt_tokens_squared", "padding_tokens")
    return replace(some[0], **{name: sum(getattr(one, name) for one in some) // len(some) for name in names})


def _costs(setup: Setup, one_each: Model, batches: tuple[MicroBatch, ...]) -> CostModel:
    """Costs of a model of one layer of each kind."""
    kinds = one_each.num_layers
    firsts = [setup.problem.model.layer_kinds.index(kind) for kind in range(kinds)]
    shape = replace(setup.shape.some_layers(firsts), streamed=(True,) * kinds, experts=())  # no groups
    batch = replace(setup.batch, micro_batches=batches)
    problem = setup.problem
    whole, routing = problem.model, problem.routing
    return CostModel(
        LeastSizes(setup.schedule, shape, setup.policy, one_each, batch, problem.hardware, routing, whole=whole)
    )


def segments(problem: Problem) -> list[tuple[int, int]]:
    """(decode step, how many it stands for): the middle one, or the first where a sliding window fills up meanwhile."""
    last = problem.workload.gen_len - 1
    if last < 1:
        return []
    parts = SEGMENTS if last >= LONG else 1
    edges = [1 + last * at // parts for at in range(parts + 1)]
    return [(_stands_for(problem, low, high - 1), high - low) for low, high in pairwise(edges)]


def _stands_for(problem: Problem, first: int, last: int) -> int:
    layers, lengths = problem.model.distinct_layers, problem.workload.prompt_tokens
    shortest, longest = min(lengths) + first, max(lengths) + last
    crossed = any(shortest < (layer.attention.window or 0) < longest for layer in layers)
    return first if crossed else (first + last) // 2


def _streamed(space: Candidates) -> Ints:
    """Bytes of each layer kind that come over the link, each time the layer runs. [row, layer kind]."""
    batches = space.batch if fetches_modules(space.schedule, space.problem.hardware) else np.zeros_like(space.batch)
    pairs, where = np.unique(np.stack([batches, space.experts], axis=1), axis=0, return_inverse=True)
    table = [_bytes_over_link(_with_experts(space.batch_setups[at], experts)) for at, experts in pairs.tolist()]
    return np.array(table, dtype=np.int64)[where.ravel()]


def _bytes_over_link(setup: Setup) -> list[int]:
    """Of each layer kind. Where modules come alone, those that a decode step needs: prefill needs no fewer."""
    if not fetches_modules(setup.schedule, setup.problem.hardware):
        return streamed_bytes(setup)
    kinds = setup.problem.model.distinct_layers
    costs = _costs(setup, replace(setup.problem.model, layers=kinds), setup.batch.micro_batches)
    return [costs(Task(0, Op.LOAD_WEIGHTS_PAGEABLE, H2D, 1, kind, NONE, WHOLE)).bytes for kind in range(len(kinds))]


def _with_experts(setup: Setup, experts: int) -> Setup:
    share = experts / setup.problem.model.num_experts
    return replace(setup, policy=replace(setup.policy, experts_on_device=share))


def _two_values(space: Candidates) -> list[int]:
    """The fewest experts on the device, and the most that leave something to stream."""
    some = space.experts[space.experts < space.problem.model.num_experts]
    most = int(some.max()) if len(some) else 0
    streams = space.batch_setups[0].shape.streams_non_experts
    return [0, most or (0 if streams else space.problem.model.num_experts // 2)]


def _asked(measure: Measure, setup: Setup, costs: CostModel, op: Op, step: int, kind: int, j: int) -> float:
    """What one task of a setup takes; over several ranks PostAttn and Route are their halves and the sums behind."""
    on_cpu = op is Op.ATTN and step > 0 and setup.policy.attention is Place.CPU
    parts = [(op, CPU if on_cpu else LANE_OF[op])]
    if op is Op.POST_ATTN and setup.num_ranks > 1:
        parts = [(Op.OUT_PROJ, GPU), (Op.EXPERTS, GPU), (Op.ALL_REDUCE, NET), (Op.ALL_REDUCE, NET)]
    if op is Op.ROUTE and setup.num_ranks > 1:
        parts = [(Op.OUT_PROJ, GPU), (Op.ALL_REDUCE, NET), (Op.ROUTE, GPU)]
    tasks = (Task(0, one, lane, step, kind, j, WHOLE) for one, lane in parts)
    return sum(measure(costs, task, setup.num_ranks) for task in tasks)
