"""Dependencies of issued tasks over arrays: what `DependencyTracker` finds, for all tasks at once.

Tasks are rows of whole numbers, and slots are numbers too.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from sim.schedule import SUMMED, WHOLE, Accesses, Lane, Op, SlotLayout, Task
from sim.simulation.compiled.jit import jitted

Array = np.ndarray[Any, Any]

OP, LANE, STEP, LAYER, MICRO_BATCH, PAGE, MEETS = range(7)
"""Columns of a row. `MEETS`: 1 if all lanes meet before the task."""
NUM_COLUMNS = 7

OPS = tuple(Op)
CODE_OF = {op: code for code, op in enumerate(OPS)}
"""An op as a number."""
SUMMED_CODES = [CODE_OF[op] for op in SUMMED]


def _asked(layout: SlotLayout, rows: Array, lanes: Sequence[Lane]) -> Iterator[tuple[Array, Accesses]]:
    """Numbers of rows that are alike, and their accesses: of all that share op, lane, step and being whole at once."""
    kinds = np.stack([rows[:, OP], rows[:, LANE], rows[:, STEP], rows[:, PAGE] == WHOLE], axis=1)
    factors = np.cumprod([1, *(kinds.max(axis=0) + 1)[:-1]])
    kind = kinds @ factors
    order = np.argsort(kind, kind="stable")
    for at in np.split(order, np.flatnonzero(np.diff(kind[order])) + 1):
        op, lane, step, whole = kinds[at[0]].tolist()
        task = Task(0, OPS[op], lanes[lane], step, rows[at, LAYER], rows[at, MICRO_BATCH], rows[at, PAGE])
        try:
            yield at, layout.accesses(task._replace(page=WHOLE) if whole else task)
        except (TypeError, ValueError):  # a layout whose rules look at single layers or micro-batches
            for row, (layer, j, page) in zip(at, rows[at, LAYER : PAGE + 1].tolist(), strict=True):
                yield row, layout.accesses(task._replace(layer=layer, micro_batch=j, page=page))


def _table(layout: SlotLayout, rows: Array, lanes: Sequence[Lane]) -> tuple[Array, int, int]:
    """All accesses of rows [tasks, accesses, (first slot, how many)], how many of them read, and how many slots are.

    Those that read come first. Slots of one buffer lie one behind the other.
    """
    sizes = [layout.num_slots(name) for name in layout.buffers]
    begin = dict(zip(layout.buffers, itertools.accumulate(sizes, initial=0), strict=False))
    found = list(_asked(layout, rows, lanes))
    num_reads, num_writes = (max(len(some[kind]) for _, some in found) for kind in (0, 1))
    table = np.zeros((len(rows), num_reads + num_writes, 2), np.int64)
    for at, (reads, writes) in found:
        for column, one in itertools.chain(enumerate(reads), enumerate(writes, num_reads)):
            table[at, column, 0] = begin[one.buffer] + one.first
            table[at, column, 1] = one.length * one.when
    return table, num_reads, sum(sizes)


@jitted
def _track(  # noqa: PLR0912
    lanes: Array, meets: Array, accesses: Array, num_reads: int, num_slots: int, num_lanes: int
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
        for access in range(accesses.shape[1]):
            first = accesses[task - 1, access, 0]
            for slot in range(first, first + accesses[task - 1, access, 1]):
                wrote = writer[slot]
                if wrote > 0:
                    needed[lanes[wrote - 1]] = max(needed[lanes[wrote - 1]], wrote)
                if access < num_reads:
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


def dependencies(layout: SlotLayout, rows: Array, lanes: Sequence[Lane]) -> tuple[Array, Array]:
    """(start, dependencies): task i waits for dependencies[start[i] : start[i + 1]], which are numbers of rows.

    rows [tasks, columns] from step 0 on in order of issue.
    """
    lane, meets = (np.ascontiguousarray(rows[:, column]) for column in (LANE, MEETS))
    start, found, count = _track(lane, meets, *_table(layout, rows, lanes), len(lanes))
    return start, found[:count]


def rows_over_ranks(
    rows: Array, start: Array, deps: Array, gpu: int, net: int, ranks: int
) -> tuple[Array, Array, Array]:
    """The same on several devices: `sim.schedule.tracking.ranks` over arrays. Lane l of rank r is l · ranks + r."""
    twice, once, summed = summed_rows(rows)
    splits = twice | once
    first = np.concatenate([[0], np.cumsum(ranks * (1 + splits) + splits + twice + summed)])
    of = np.repeat(np.arange(len(rows)), np.diff(first))
    part = np.arange(len(of)) - first[of]
    out = rows[of]
    out[:, LANE] = rows[of, LANE] * ranks + np.where(part > ranks, part - ranks - 1, part)
    split = splits[of]
    out[split & (part < ranks), OP] = CODE_OF[Op.OUT_PROJ]
    out[twice[of] & (part > ranks), OP] = CODE_OF[Op.EXPERTS]
    for page, last in enumerate((ranks, 2 * ranks + 1)):
        sums = split & (part == last)
        out[sums, OP], out[sums, LANE], out[sums, PAGE] = CODE_OF[Op.ALL_REDUCE], net, page
    for op, page in SUMMED.items():
        sums = (rows[of, OP] == CODE_OF[op]) & (part == ranks)
        out[sums, OP], out[sums, LANE], out[sums, PAGE] = CODE_OF[Op.ALL_REDUCE], net, page
    pairs = np.concatenate(_ranked_pairs(rows, start, deps, first, gpu, ranks))
    task, dep = np.divmod(np.unique(pairs[:, 0] * len(out) + pairs[:, 1]), len(out))
    return out, np.searchsorted(task, np.arange(len(out) + 1)), dep


def summed_rows(rows: Array) -> tuple[Array, Array, Array]:
    """Which rows split and are summed twice, which split and are summed in the middle, and which at their end."""
    twice, once = (rows[:, OP] == CODE_OF[op] for op in (Op.POST_ATTN, Op.ROUTE))
    return twice, once, np.isin(rows[:, OP], SUMMED_CODES)


def _ranked_pairs(rows: Array, start: Array, deps: Array, first: Array, gpu: int, ranks: int) -> list[Array]:
    """(task, dependency) on all ranks."""
    twice, once, summed = summed_rows(rows)
    sums = twice | summed
    last = first[1:] - 1  # of what is summed: its last sum
    task = np.repeat(np.arange(len(rows)), np.diff(start))
    compute = np.flatnonzero(rows[:, LANE] == gpu)
    before, after = compute[:-1], compute[1:]
    before, after = before[sums[before]], after[sums[before]]
    split, one, double = first[:-1][twice | once], first[:-1][summed], first[:-1][twice]
    own = first[:-1] + once * (ranks + 1)  # of who waits for no sum: what a rank does last
    pairs = []
    for rank in range(ranks):
        pairs += [
            (first[task] + rank, np.where(sums[deps], last[deps], own[deps] + rank)),
            (first[after] + rank, last[before]),
            (one + ranks, one + rank),
            (split + ranks, split + rank),
            (split + ranks + 1 + rank, split + ranks),
            (double + 2 * ranks + 1, double + ranks + 1 + rank),
        ]
    return [np.stack(pair, axis=1) for pair in pairs]
