"""From a task to seconds, and why: the formula of each op, asked once for all tasks that cost the same."""

from collections.abc import Hashable, Iterable, Sequence

from sim.cost.copies import Copies
from sim.cost.emulation import EmulatedCosts
from sim.cost.kernels import Kernels
from sim.cost.pools import DRAM, in_one_memory, link, never_exceeded, pool_capacities
from sim.cost.sizes import Sizes
from sim.cost.work import Cost, Effort, Work
from sim.schedule import Lane, LaneKind, Op, Task

CACHE_LIMIT = 5_000
"""Costs remembered before the memory of them starts anew."""

GROWS_WITH_CONTEXT = frozenset({Op.ATTN, Op.LOAD_KV, Op.HOST_LAYER})
"""Ops whose cost differs from one decode step to the next; the others tell only prefill from decode."""

WITHOUT_EXPERTS = frozenset(
    {Op.PRE_ATTN, Op.ATTN, Op.OFFLOAD_QKV, Op.LOAD_HIDDEN, Op.STORE_HIDDEN, Op.LOAD_KV, Op.STORE_KV}
)
"""Ops that cost the same in equal layers of the model, wherever experts are and whatever tokens use of them."""

OWN_PAGES = frozenset({Op.ALL_REDUCE, Op.HOST_EXPERTS, Op.LOAD_OUTPUT})
"""Ops whose pages are not of weights: each page is a kind of its own."""


class CostModel:
    """Costs of all tasks of one run; call it with a task.

    `only_contended` leaves out demands on pools that all lanes together cannot exceed, which need no watching.
    Equal tasks are computed once: the cost depends on the op, the kinds of layer, micro-batch and page, the lane and
    prefill or decode, and in `GROWS_WITH_CONTEXT` on the step. Kinds are numbers from 0 on; the last entry of a list of
    kinds is -1 and answers for `NONE` and `WHOLE`.
    """

    def __init__(self, sizes: Sizes, *, only_contended: bool = False) -> None:
        self._sizes, hardware = sizes, sizes.hardware
        self._copies = Copies(sizes)
        self._formulas = {**Kernels(sizes).formulas, **self._copies.formulas}
        self._emulated = EmulatedCosts(hardware.emulation, sizes) if hardware.emulation else None
        self._left_out = never_exceeded(hardware) if only_contended else frozenset[int]()
        self.layer_kinds = (*sizes.expert_use.layer_kinds, -1)
        self.batch_kinds = (*_kinds(sizes.work), -1)
        kinds = sizes.expert_use.layer_kinds
        firsts = (kinds.index(kind) for kind in range(max(kinds) + 1))
        self.page_kinds = (*(self._pages_of(layer) for layer in firsts), (-1,) * (sizes.shape.num_pages + 1))
        """Per kind of layer, of pages with as many bytes, as many of them page-locked; the last entry is no layer's."""
        self._same_layers = (*sizes.model.layer_kinds, -1)
        self._known: dict[tuple[Op, int, int, int, int, Lane], Cost] = {}

    def _pages_of(self, layer: int) -> tuple[int, ...]:
        """The kinds of a layer's pages, by their bytes and what of these is staged."""
        kind = self._sizes.placement.kinds[layer]
        whole = self._sizes.placement.streamed_bytes(kind)
        pages = zip(self._sizes.page_bytes(whole), self._sizes.staged_page_bytes(whole, kind), strict=True)
        return (*_kinds(pages), -1)

    def __call__(self, task: Task) -> Cost:
        """Solo time, demands and the physics of one task."""
        _, op, lane, step, layer, j, page, _ = task
        when = step if op in GROWS_WITH_CONTEXT else step > 0
        kind = self.layer_kinds[layer]
        of_page = page if op in OWN_PAGES else self.page_kinds[kind][page]
        if op in WITHOUT_EXPERTS:
            kind = self._same_layers[layer]
        key = (op, when, kind, self.batch_kinds[j], of_page, lane)
        cost = self._known.get(key)
        if cost is None:
            if len(self._known) > CACHE_LIMIT:
                self._known.clear()
            cost = self._known[key] = self._computed(task)
        return cost

    def _computed(self, task: Task) -> Cost:
        work = self._formulas[task.op](task)
        cost = work.cost() if self._emulated is None else self._emulated(task, work)
        cost = cost._replace(effort=_effort(task, work))
        if task.op in (Op.LOAD_WEIGHTS, Op.LOAD_WEIGHTS_PAGEABLE):
            cost = self._copies.gathered(task, cost)
        demands = in_one_memory(cost.demands) if self._sizes.hardware.unified else cost.demands
        return cost._replace(demands=tuple(one for one in demands if one[0] not in self._left_out))

    @property
    def capacities(self) -> Sequence[int]:
        """Per pool, what it gives in a second; of the host, what is left to one of the parts of the batch."""
        return pool_capacities(self._sizes.hardware, self._sizes.parts)

    @property
    def hand_over_ns(self) -> int:
        """How long after a task's end another lane notices it."""
        return round((self._sizes.hardware.hand_over_s or 0.0) * 1e9)


def _effort(task: Task, work: Work) -> Effort:
    over_link = work.traffic.get(link(task.lane.rank), 0.0)
    over_network = work.moved if task.lane.kind is LaneKind.NET else 0.0
    in_dram = work.traffic.get(DRAM, 0.0)
    return Effort(work.compute_s, work.memory_s, work.copied, in_dram, over_link, over_network)


def _kinds(things: Iterable[Hashable]) -> list[int]:
    """Of each thing a number that it shares with equal ones, from 0 on."""
    alike: dict[Hashable, int] = {}
    return [alike.setdefault(one, len(alike)) for one in things]
