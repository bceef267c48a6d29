"""Dependencies of issued tasks over arrays: what `SlotLayout` and `DependencyTracker` find, for all tasks at once.

Tasks are rows of whole numbers. Slots are numbers too: those of one kind lie one behind the other, so that an access
is a first slot and a count.
"""

from typing import Any

import numpy as np

from sim.schedule import KV_SLOTS, WEIGHT_SLOTS, WHOLE, Op, SlotLayout
from sim.simulation.compiled.jit import jitted

Array = np.ndarray[Any, Any]

OP, LANE, STEP, LAYER, MICRO_BATCH, PAGE, MEETS = range(7)
"""Columns of a row. `MEETS`: 1 if all lanes meet before the task."""
NUM_COLUMNS = 7

OPS = tuple(Op)
CODE_OF = {op: code for code, op in enumerate(OPS)}
"""An op as a number."""

READS, WRITES = slice(0, 3), slice(3, 6)
"""Accesses of a task: two single slots and one range of pages that it reads, the same that it writes."""
NUM_READS = 3
NUM_ACCESSES = 6


class _Slots:
    """Numbers for the slots of `SlotLayout`, and the accesses of rows: `SlotLayout.accesses` for all of them."""

    def __init__(self, layout: SlotLayout, rows: Array, on_cpu: Array) -> None:
        shape = layout.shape
        n, self._pages = shape.num_micro_batches, shape.num_pages
        self._count = 0
        self.found = np.zeros((len(rows), NUM_ACCESSES, 2), np.int64)
        op, step, page = rows[:, OP], rows[:, STEP], rows[:, PAGE]
        self._op = op
        layer = np.where(op == CODE_OF[Op.HEAD], shape.num_layers - 1, rows[:, LAYER])
        run = step * shape.num_layers + layer
        self._j = j = rows[:, MICRO_BATCH]
        self._turn = (run * n + j) % KV_SLOTS
        weights = self._kind(WEIGHT_SLOTS * self._pages) + run % WEIGHT_SLOTS * self._pages
        pinned = self._kind(layout.pinned_layers * self._pages) + run % layout.pinned_layers * self._pages
        self._weights, self._pinned = weights, pinned
        self._moved = (np.maximum(page, 0), np.where(page == WHOLE, self._pages, 1))
        hidden = self._kind(n) + j
        turns = (step == 0) & shape.offloads_hidden
        self._hidden = np.where(turns, self._kind(KV_SLOTS) + self._turn, hidden)
        self._next_hidden = hidden
        self._streamed = np.array(shape.streamed)[layer]
        self._decodes, self._on_cpu = step > 0, on_cpu[rows[:, LANE]]
        self._enters = (step == 0) & (layer == 0)
        self._cache = self._kind(shape.num_layers * n) + layer * n + j
        self._layout = layout
        self._access()

    @property
    def count(self) -> int:
        """How many slots there are."""
        return self._count

    def _kind(self, slots: int) -> int:
        first, self._count = self._count, self._count + slots
        return first

    def _of(self, *ops: Op) -> Array:
        """Which rows are of these ops."""
        rows: Array = np.logical_or.reduce([self._op == CODE_OF[op] for op in ops])
        return rows

    def _put(self, where: Array, access: int, slots: Array, count: int | Array = 1) -> None:
        at = np.flatnonzero(where)
        self.found[at, access, 0] = slots[at]
        self.found[at, access, 1] = count if isinstance(count, int) else count[at]

    def _access(self) -> None:
        """Each access of each op; an op's rows never meet in one place of the table."""
        shape, n = self._layout.shape, self._layout.shape.num_micro_batches
        one, two, pages, put, put_two, put_pages = range(NUM_ACCESSES)
        own = [self._kind(n) + self._j for _ in range(5)]
        qkv, qkv_on_host, attention, attention_on_host, hidden_on_host = own
        loaded, new_kv = (self._kind(KV_SLOTS) + self._turn for _ in range(2))
        page, count = self._moved
        pins, loads, pageable = map(self._of, (Op.PIN_WEIGHTS, Op.LOAD_WEIGHTS, Op.LOAD_WEIGHTS_PAGEABLE))
        self._put(pins, put_pages, self._pinned + page, count)
        self._put(loads | pageable, put_pages, self._weights + page, count)
        if not shape.weights_pinned:
            self._put(loads, pages, self._pinned + page, count)
        computes = self._of(Op.PRE_ATTN, Op.POST_ATTN) if shape.streams_non_experts else self._of(Op.POST_ATTN)
        self._put(computes & self._streamed, pages, self._weights, self._pages)
        enters = self._of(Op.PRE_ATTN)
        self._put(enters & ~self._enters, one, self._hidden)
        self._put(enters & self._enters, put, self._hidden)
        self._put(enters, put_two, qkv)
        self._put(self._of(Op.OFFLOAD_QKV), one, qkv)
        self._put(self._of(Op.OFFLOAD_QKV), put, qkv_on_host)
        attends = self._of(Op.ATTN)
        on_cpu, on_gpu = attends & self._on_cpu, attends & ~self._on_cpu
        keeps = on_cpu if shape.streams_kv else attends
        self._put(on_cpu, one, qkv_on_host)
        self._put(on_gpu, one, qkv)
        self._put(on_gpu & self._decodes, two, loaded)
        self._put(keeps & self._decodes, two, self._cache)
        self._put(on_cpu, put, attention_on_host)
        self._put(on_gpu, put, attention)
        self._put(on_gpu, put_two, new_kv)
        self._put(keeps, put_two, self._cache)
        loads = self._of(Op.LOAD_HIDDEN)
        self._put(loads & self._decodes, one, attention_on_host)
        self._put(loads & self._decodes, put, attention)
        self._put(loads & ~self._decodes, one, hidden_on_host)
        self._put(loads & ~self._decodes, put, self._hidden)
        self._put(self._of(Op.POST_ATTN), two, attention)
        self._put(self._of(Op.POST_ATTN, Op.HEAD, Op.STORE_HIDDEN), one, self._hidden)
        self._put(self._of(Op.POST_ATTN), put, self._hidden)
        self._put(self._of(Op.HEAD), put, self._next_hidden)
        self._put(self._of(Op.STORE_HIDDEN), put, hidden_on_host)
        self._put(self._of(Op.LOAD_KV), one, self._cache)
        self._put(self._of(Op.LOAD_KV), put, loaded)
        self._put(self._of(Op.STORE_KV), one, new_kv)
        self._put(self._of(Op.STORE_KV), put, self._cache)


@jitted
def _track(  # noqa: PLR0912
    lanes: Array, meets: Array, accesses: Array, num_slots: int, num_lanes: int
) -> tuple[Array, Array, int]:
    """As `DependencyTracker`: start of each task's dependencies, these, how many there are. Tasks count from 1 here."""
    num_tasks = len(lanes)
    writer, readers = np.zeros(num_slots, np.int64), np.zeros((num_slots, num_lanes), np.int64)
    clocks = np.zeros((num_tasks + 1, num_lanes), np.int64)  # per task, what has ended on each lane before it ends
    start, found, count = np.zeros(num_tasks + 1, np.int64), np.zeros(num_tasks * num_lanes, np.int64), 0
    needed, last, barrier = np.zeros((3, num_lanes), np.int64)
    met = np.zeros(num_lanes, np.int64)
    for task in range(1, num_tasks + 1):
        lane = lanes[task - 1]
        for access in range(NUM_ACCESSES):
            first = accesses[task - 1, access, 0]
            for slot in range(first, first + accesses[task - 1, access, 1]):
                wrote = writer[slot]
                if wrote > 0:
                    needed[lanes[wrote - 1]] = max(needed[lanes[wrote - 1]], wrote)
                if access < NUM_READS:
                    readers[slot, lane] = task
                    continue
                writer[slot] = task
                for other in range(num_lanes):
                    if readers[slot, other] != task:
                        needed[other] = max(needed[other], readers[slot, other])
                    readers[slot, other] = 0
        if meets[task - 1]:
            for other in range(num_lanes):
                barrier[other], met[other] = last[other], 0
        for other in range(num_lanes):
            if met[lane] == 0:
                needed[other] = max(needed[other], barrier[other])
            clocks[task, other] = clocks[last[lane], other]
        met[lane], last[lane] = 1, task
        begin = count
        while True:  # the latest first: it may imply an earlier one
            latest, at = 0, -1
            for other in range(num_lanes):
                if needed[other] > latest:
                    latest, at = needed[other], other
            if at < 0:
                break
            needed[at] = 0
            if clocks[task, at] < latest:
                found[count] = latest - 1
                count += 1
                for other in range(num_lanes):
                    clocks[task, other] = max(clocks[task, other], clocks[latest, other])
        for at in range((count - begin) // 2):
            found[begin + at], found[count - 1 - at] = found[count - 1 - at], found[begin + at]
        clocks[task, lane] = task
        start[task] = count
    return start, found, count


def dependencies(layout: SlotLayout, rows: Array, on_cpu: Array) -> tuple[Array, Array]:
    """(start, dependencies): task i waits for dependencies[start[i] : start[i + 1]], which are numbers of rows.

    rows [tasks, columns] from step 0 on in order of issue; on_cpu [lanes].
    """
    slots = _Slots(layout, rows, on_cpu)
    start, found, count = _track(
        np.ascontiguousarray(rows[:, LANE]),
        np.ascontiguousarray(rows[:, MEETS]),
        slots.found,
        slots.count,
        len(on_cpu),
    )
    return start, found[:count]


def over_ranks(rows: Array, start: Array, deps: Array, gpu: int, net: int, ranks: int) -> tuple[Array, Array, Array]:
    """The same on several devices: `sim.schedule.ranks` over arrays. Lane l of rank r is l · ranks + r."""
    splits = rows[:, OP] == CODE_OF[Op.POST_ATTN]
    first = np.concatenate([[0], np.cumsum(np.where(splits, 2 * ranks + 2, ranks))])
    of = np.repeat(np.arange(len(rows)), np.diff(first))
    part = np.arange(len(of)) - first[of]
    out = rows[of]
    out[:, LANE] = rows[of, LANE] * ranks + np.where(part > ranks, part - ranks - 1, part)
    split = splits[of]
    out[split & (part < ranks), OP] = CODE_OF[Op.OUT_PROJ]
    out[split & (part > ranks), OP] = CODE_OF[Op.EXPERTS]
    for page, last in enumerate((ranks, 2 * ranks + 1)):
        sums = split & (part == last)
        out[sums, OP], out[sums, LANE], out[sums, PAGE] = CODE_OF[Op.ALL_REDUCE], net, page
    pairs = np.concatenate(_ranked_pairs(rows, start, deps, first, splits, gpu, ranks))
    task, dep = np.divmod(np.unique(pairs[:, 0] * len(out) + pairs[:, 1]), len(out))
    return out, np.searchsorted(task, np.arange(len(out) + 1)), dep


def _ranked_pairs(
    rows: Array, start: Array, deps: Array, first: Array, splits: Array, gpu: int, ranks: int
) -> list[Array]:
    """(task, dependency) on all ranks."""
    summed = first[1:] - 1  # of a PostAttn: its second sum
    task = np.repeat(np.arange(len(rows)), np.diff(start))
    compute = np.flatnonzero(rows[:, LANE] == gpu)
    before, after = compute[:-1], compute[1:]
    before, after = before[splits[before]], after[splits[before]]
    split = first[:-1][splits]
    pairs = []
    for rank in range(ranks):
        expert = split + ranks + 1 + rank
        pairs += [
            (first[task] + rank, np.where(splits[deps], summed[deps], first[deps] + rank)),
            (first[after] + rank, summed[before]),
            (split + ranks, split + rank),
            (expert, split + ranks),
            (split + 2 * ranks + 1, expert),
        ]
    return [np.stack(pair, axis=1) for pair in pairs]
