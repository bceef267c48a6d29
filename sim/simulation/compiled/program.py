"""The steps of a schedule as arrays, made once for a shape and kept.

Rows are what the schedule issues: a few layers and steps, from which the others follow by counting, if with few
micro-batches that is what the schedule issues; else every layer and step. Dependencies are found as `DependencyTracker`
finds them, in compiled code.
"""

import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from sim.schedule import GPU, NET, Barrier, Issues, Lane, PipelineShape, Schedule, layout_of, steady_step
from sim.simulation.compiled.dependencies import (
    CODE_OF,
    LANE,
    LAYER,
    MEETS,
    NUM_COLUMNS,
    OP,
    STEP,
    Array,
    dependencies,
    rows_over_ranks,
    summed_rows,
)

PERIODS_KEPT = 4
"""Of layers that are alike, as many periods are issued."""
LONGEST_PERIOD = 4

FEW = 2
"""Micro-batches and pages, and decode steps between the first and the last, that show whether layers are alike."""

PROGRAMS_KEPT = 256


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """Steps of a pipeline, lane by lane: step 0 to the first steady one, and one more that is the last if `is_long`."""

    lanes: tuple[Lane, ...]
    steady: int
    """The step that stands for all later ones but the last."""
    is_long: bool
    """Whether there is a last step behind the steady one; else the generation is over before."""
    rows: Array
    """[tasks, columns]; steps count from the step that issues the task."""
    step_of: Array
    """[tasks]: the step that issues it."""
    lane_start: Array
    dep_start: Array
    deps: Array
    """[dependencies, columns]"""
    first_on: tuple[tuple[int, ...], ...] = field(repr=False)
    """Per step, its lanes in order of first issue."""

    def kinds(self, first: int, stop: int, last: int) -> list[int]:
        """Which step of the program each of `first` to `stop` - 1 is, as `Schedule.steps` has them."""
        steps = [min(step, self.steady) if first == 0 else self.steady for step in range(first, stop)]
        if self.is_long and first <= last < stop:
            steps[last - first] = self.steady + 1
        return steps


def program_of(schedule: Schedule, shape: PipelineShape, num_ranks: int, first: int, last: int) -> Program:
    """The steps of a generation that ends with step `last`, of which `first` is the first that is looked at."""
    steady = steady_step(schedule, shape)
    return _program(schedule, shape, num_ranks, last if first == 0 and last <= steady else None)


@lru_cache(maxsize=PROGRAMS_KEPT)
def _program(schedule: Schedule, shape: PipelineShape, num_ranks: int, last: int | None) -> Program:
    steady = steady_step(schedule, shape)
    final = steady + 1 if last is None else last
    lanes: dict[Lane, int] = {GPU: 0}
    steps = _issued(schedule, shape, final, lanes, alike=_alike(schedule, _few(shape)))
    rows = np.concatenate(steps)
    start, deps = dependencies(layout_of(schedule, shape), rows, tuple(lanes))
    lengths = [len(step) for step in steps]
    named = tuple(lanes)
    if num_ranks > 1:
        counted = ((len(step), *(int(kind.sum()) for kind in summed_rows(step))) for step in steps)
        lengths = [num_ranks * (n + twice + once) + 2 * twice + once + end for n, twice, once, end in counted]
        named = (*(Lane(lane.kind, rank) for lane in lanes for rank in range(num_ranks)), NET)
        rows, start, deps = rows_over_ranks(rows, start, deps, 0, len(named) - 1, num_ranks)
    return _arranged(named, min(steady, final), last is None, rows, start, deps, lengths)


def _arranged(
    lanes: tuple[Lane, ...], steady: int, is_long: bool, rows: Array, start: Array, deps: Array, lengths: Sequence[int]
) -> Program:
    """Tasks lane by lane within each step; a dependency is told by its lane and its place there."""
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    firsts = tuple(tuple(dict.fromkeys(rows[a:b, LANE].tolist())) for a, b in itertools.pairwise(bounds))
    num_steps, num_lanes = len(lengths), len(lanes)
    step_of = np.repeat(np.arange(num_steps), lengths)
    queue = step_of * num_lanes + rows[:, LANE]
    numbers = np.bincount(queue, minlength=num_steps * num_lanes).reshape(num_steps, num_lanes)
    lane_start = np.zeros((num_steps, num_lanes + 1), np.int64)
    lane_start[:, 1:] = np.cumsum(numbers, axis=1)
    lane_start += bounds[:-1, None]
    before = np.cumsum(numbers, axis=0) - numbers
    row_of = np.argsort(queue, kind="stable")
    place = np.empty(len(rows), np.int64)  # on the lane, from its first task of all
    place[row_of] = np.arange(len(rows))
    place += (before - lane_start[:, :-1])[step_of, rows[:, LANE]]
    num_deps = np.diff(start)[row_of]
    dep_start = np.concatenate([[0], np.cumsum(num_deps)])
    dep = deps[np.repeat(start[row_of] - dep_start[:-1], num_deps) + np.arange(len(deps))]
    dep_lane = rows[dep, LANE]
    dep_place = place[dep] - before[np.repeat(step_of, num_deps), dep_lane]
    rows_by_lane = rows[row_of]
    rows_by_lane[:, STEP] -= step_of
    return Program(
        lanes,
        steady,
        is_long,
        rows_by_lane,
        step_of,
        lane_start,
        dep_start,
        np.stack([dep_lane, dep_place, rows[dep, OP]], axis=1),
        firsts,
    )


def _few(shape: PipelineShape) -> PipelineShape:
    """The same layers with few micro-batches, of which the order of issue is soon seen."""
    fewer = {name: min(FEW, getattr(shape, name)) for name in ("num_micro_batches", "num_pages", "num_groups")}
    num_prompts, some = min(FEW - 1, shape.num_prompts), shape.attending_on_device
    decoding = fewer["num_micro_batches"] - num_prompts
    there = decoding if some == shape.num_decoding else min(some, decoding - 1)
    return replace(shape, **fewer, attending_on_device=there, num_prompts=num_prompts)


@lru_cache(maxsize=PROGRAMS_KEPT)
def _alike(schedule: Schedule, few: PipelineShape) -> bool:
    """Whether a schedule issues layers and steps that are alike in the same order, so that they follow by counting."""
    counted, issued = (_issued(schedule, few, FEW + 1, {}, alike=alike) for alike in (True, False))
    return all(map(np.array_equal, counted, issued))


def _issued(
    schedule: Schedule, shape: PipelineShape, final: int, lanes: dict[Lane, int], *, alike: bool
) -> list[Array]:
    """Rows of steps 0 to `final`; if layers and steps are `alike`, of few layers and steps, and the others counted."""
    steps = list[tuple[Array, bool]]()
    for step in range(final + 1):
        if alike and 1 < step < final:
            rows, meets = steps[1]
            rows = rows.copy()
            rows[:, STEP] += step - 1
            steps.append((rows, meets))
        else:
            steps.append(_rows(schedule, shape, step, step < final, lanes, alike=alike))
    for (_, meets), (rows, _) in reversed(list(itertools.pairwise(steps))):
        rows[0, MEETS] |= meets
    return [rows for rows, _ in steps]


def _rows(
    schedule: Schedule, shape: PipelineShape, step: int, more: bool, lanes: dict[Lane, int], *, alike: bool
) -> tuple[Array, bool]:
    """One step as issued, and whether all lanes meet at its end."""
    at, period, times = repeated_layers(alike_layers(shape))
    if times and alike:
        fewer = shape.some_layers([*range(at), *range(at + period * times, shape.num_layers)])
        few, meets = _issue(schedule, fewer, step, more, lanes)
        rows = _with_layers(few, step, at + 2 * period, period, times)
        if rows is not None:
            return rows, meets
    return _issue(schedule, shape, step, more, lanes)


def _issue(
    schedule: Schedule, shape: PipelineShape, step: int, more: bool, lanes: dict[Lane, int]
) -> tuple[Array, bool]:
    issues: Issues = schedule.prefill(shape, more) if step == 0 else schedule.decode(shape, step, more)
    rows: list[tuple[int, ...]] = []
    meets = False
    for item in issues:
        if isinstance(item, Barrier):
            meets = True
        else:
            op, lane, when, layer, j, page = item
            rows.append((CODE_OF[op], lanes.setdefault(lane, len(lanes)), when, layer, j, page, meets))
            meets = False
    return np.array(rows, np.int64).reshape(-1, NUM_COLUMNS), meets


def alike_layers(shape: PipelineShape) -> list[Hashable]:
    """Of each layer, all that a schedule may know of it."""
    nothing, (first, stop) = (None,) * shape.num_layers, shape.layers_on_host
    on_host = [first <= layer < stop for layer in range(shape.num_layers)]
    return list(
        zip(shape.streamed, shape.experts or nothing, shape.streamed_in_prefill or nothing, on_host, strict=True)
    )


def repeated_layers(layers: Sequence[Hashable]) -> tuple[int, int, int]:
    """(first, period, times): layers from `first` on whose pattern repeats, and how many periods can be left out."""
    best = (0, 1, 0)
    for period in range(1, LONGEST_PERIOD + 1):
        begin = 0
        for at in range(len(layers) - period + 1):
            if at < len(layers) - period and layers[at] == layers[at + period]:
                continue
            times = (at + period - begin) // period - PERIODS_KEPT
            if times * period > best[1] * best[2]:
                best = (begin, period, times)
            begin = at + 1
    return best


def _with_layers(few: Array, step: int, layer: int, period: int, times: int) -> Array | None:
    """The rows with `times` more periods behind those of `layer`; None if they do not repeat as they should."""
    counted = (few[:, STEP] == step) & (few[:, LAYER] >= layer) & (few[:, LAYER] < layer + period)
    length = int(counted.sum())
    shift = np.zeros(NUM_COLUMNS, np.int64)
    shift[LAYER] = period
    same = (few[length:] - few[:-length] == shift).all(axis=1)
    differs = np.flatnonzero(np.concatenate([[True], ~same, [True]]))  # row r differs at r + 1
    inside = int(counted.argmax())
    after = int(np.searchsorted(differs, inside, side="right"))
    begin = int(differs[after - 1])
    if differs[after] - begin - 1 < length:
        return None
    cut = begin + length
    block = np.tile(few[begin:cut], (times, 1))
    block[:, LAYER] += np.repeat(np.arange(1, times + 1) * period, length)
    tail = few[cut:].copy()
    tail[(tail[:, STEP] == step) & (tail[:, LAYER] >= 0), LAYER] += times * period
    return np.concatenate([few[:cut], block, tail])
