"""Simulates steps over arrays: what the simulator does with one SimPy process per lane, as one loop over events.

A lane is a number; its tasks lie one behind the other. A dependency is a lane and how many tasks that lane must have
ended, so one counter per lane stands for everything that has ended. Rates are set once for each moment, after all that
ends and starts in it.
"""

from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sim.schedule import Op
from sim.simulation.compiled.jit import COMPILES, jitted

Array = np.ndarray[Any, Any]

NUM_OPS = len(Op)
NEVER = 2**62

COST, HEADS, DEPS = range(3)
"""Columns of a task: row in the step's table of costs, whether it puts out tokens, where its dependencies begin."""
DEP_LANE, DEP_PLACE, DEP_OP = range(3)
"""Columns of a dependency: its lane, its place there counted from that lane's first task of the same step, its op."""

PLACE, STOP, STEP, ENDED, READY, DEP, AWAITED, NEEDED, SINCE, DUE, ADVANCED = range(11)
"""Columns of a lane: its next or running task, the end of its tasks in this step, the step; tasks ended so far; whether
it is to go on; the dependency it waits for, that one's lane (else NOBODY), and how many tasks must have ended there;
since when it runs or waits; when its task ends at its present rate; when the task's work was counted last. Once the
dependency has ended, the lane awaits the NEWS of it, and that is what is due."""
NOBODY, NEWS = -1, -2
RATE, REMAINING, FAIR = range(3)
"""Columns of a lane's speed: progress rate, solo nanoseconds left when counted last, the rate that is fair."""


class Tasks(NamedTuple):
    """Tasks of several kinds of step, lane by lane."""

    lane_start: Array  # [kinds of step, lanes + 1]: where a lane's tasks begin and, as the next entry, end
    tasks: Array  # [tasks + 1, COST … DEPS]
    deps: Array  # [dependencies, DEP_LANE … DEP_OP]


class Costs(NamedTuple):
    """What tasks take in each step, and what there is."""

    duration_ns: Array  # [steps, costs]
    amount: Array  # [steps, costs, pools]: per second at full speed
    capacity: Array  # [pools]


class Uses(NamedTuple):
    """What came out, per step as issued."""

    end_ns: Array  # [steps]: when the last token was out
    drained_ns: Array  # [steps]: when the last task had ended
    behind_ns: Array  # [steps, lanes]: of what was busy, what came behind the last token
    busy_ns: Array  # [steps, lanes]
    waited_ns: Array  # [steps, lanes, ops]


@jitted
def _share_fairly(speed: Array, capacity: Array, asked: Array) -> None:
    """Progressive filling, as `sim.simulation.fair_sharing.fair_rates`; a rate of 0 is still rising."""
    left = np.zeros(len(capacity))
    for pool in range(len(capacity)):
        left[pool] = capacity[pool]
    for lane in range(len(asked)):
        speed[lane, FAIR] = 0.0
    while True:
        level, full = 1.0, -1
        for pool in range(len(capacity)):
            want = 0.0
            for lane in range(len(asked)):
                if speed[lane, FAIR] == 0.0:
                    want += asked[lane, pool]
            if want > 0.0 and left[pool] / want < level:
                level, full = left[pool] / want, pool
        for lane in range(len(asked)):
            if speed[lane, FAIR] == 0.0 and (full < 0 or asked[lane, full] > 0):
                speed[lane, FAIR] = level
                for pool in range(len(capacity)):
                    left[pool] = max(0.0, left[pool] - level * asked[lane, pool])
        if full < 0:
            return


@jitted
def _run(  # noqa: PLR0912, PLR0915
    kinds: Array,
    lane_start: Array,
    tasks: Array,
    deps: Array,
    duration: Array,
    amount: Array,
    capacity: Array,
    end: Array,
    drained: Array,
    behind: Array,
    busy: Array,
    waited: Array,
    hand_over: int | None,
) -> int:
    """One function, because each that it calls would be compiled again with it.

    Without a hand-over it is compiled by itself, with nothing that asks for one: so `hand_over` is None, not 0.
    """
    num_lanes, num_pools, num_steps = lane_start.shape[1] - 1, len(capacity), len(kinds)
    lanes, speed = np.zeros((num_lanes, 11), np.int64), np.ones((num_lanes, 3))
    asked, load, was_contended = np.zeros((num_lanes, num_pools), np.int64), np.zeros(num_pools, np.int64), False
    before = np.zeros((num_steps + 1, num_lanes), np.int64)  # tasks of each lane in all earlier steps
    left = 0
    for lane in range(num_lanes):
        lanes[lane, STEP], lanes[lane, READY], lanes[lane, AWAITED], lanes[lane, DUE] = -1, 1, NOBODY, NEVER
        for step in range(num_steps):
            count = lane_start[kinds[step], lane + 1] - lane_start[kinds[step], lane]
            before[step + 1, lane] = before[step, lane] + count
            left += count
    if hand_over is not None:
        ended = np.zeros((num_lanes, before[num_steps].max()), np.int64)  # when each task of a lane did
    now = 0
    while now < NEVER:
        for lane in range(num_lanes):  # each lane that is ready goes on to its next task
            if lanes[lane, READY] == 0:
                continue
            lanes[lane, READY] = 0
            step = lanes[lane, STEP]
            while lanes[lane, PLACE] == lanes[lane, STOP] and step < num_steps:
                step += 1
                lanes[lane, STEP], lanes[lane, DEP] = step, 0
                if step < num_steps:
                    kind = kinds[step]
                    lanes[lane, PLACE], lanes[lane, STOP] = lane_start[kind, lane], lane_start[kind, lane + 1]
            if step == num_steps:
                continue
            task = lanes[lane, PLACE]
            for dep in range(max(lanes[lane, DEP], tasks[task, DEPS]), tasks[task + 1, DEPS]):
                other = deps[dep, DEP_LANE]
                needed = before[step, other] + deps[dep, DEP_PLACE] + 1
                if lanes[other, ENDED] < needed:
                    lanes[lane, DEP], lanes[lane, AWAITED], lanes[lane, NEEDED] = dep, other, needed
                    break
                if hand_over is not None and other != lane and needed > 0:
                    heard = ended[other, needed - 1] + hand_over
                    if heard > now:
                        lanes[lane, DEP], lanes[lane, AWAITED], lanes[lane, DUE] = dep, NEWS, heard
                        break
            lanes[lane, SINCE] = now
            if lanes[lane, AWAITED] != NOBODY:
                continue
            cost = tasks[task, COST]
            lanes[lane, ADVANCED], lanes[lane, DUE] = now, now + duration[step, cost]
            speed[lane, REMAINING] = duration[step, cost]
            for pool in range(num_pools):
                asked[lane, pool] = amount[step, cost, pool]
                load[pool] += amount[step, cost, pool]
        contended = False
        for pool in range(num_pools):
            contended |= load[pool] > capacity[pool]
        if contended or was_contended:
            _share_fairly(speed, capacity, asked)
            for lane in range(num_lanes):
                if lanes[lane, DUE] < NEVER and speed[lane, RATE] != speed[lane, FAIR]:
                    speed[lane, REMAINING] -= (now - lanes[lane, ADVANCED]) * speed[lane, RATE]
                    speed[lane, RATE], lanes[lane, ADVANCED] = speed[lane, FAIR], now
                    lanes[lane, DUE] = now + max(0, ceil(speed[lane, REMAINING] / speed[lane, RATE] - 1e-6))
        was_contended = contended
        now = NEVER
        for lane in range(num_lanes):
            now = min(now, lanes[lane, DUE])
        if now == NEVER:
            break
        for lane in range(num_lanes):  # what is due ends, and wakes who waited for it
            if lanes[lane, DUE] > now:
                continue
            task, step = lanes[lane, PLACE], lanes[lane, STEP]
            if hand_over is not None and lanes[lane, AWAITED] == NEWS:
                waited[step, lane, deps[lanes[lane, DEP], DEP_OP]] += now - lanes[lane, SINCE]
                lanes[lane, AWAITED], lanes[lane, DUE], lanes[lane, READY] = NOBODY, NEVER, 1
                continue
            busy[step, lane] += now - lanes[lane, SINCE]
            drained[step] = now
            if tasks[task, HEADS]:
                end[step] = now
                for other in range(num_lanes):
                    behind[step, other] = 0
            elif end[step] > 0:
                behind[step, lane] += now - max(lanes[lane, SINCE], end[step])
            left -= 1
            if hand_over is not None:
                ended[lane, lanes[lane, ENDED]] = now
            lanes[lane, PLACE] += 1
            lanes[lane, ENDED] += 1
            lanes[lane, DUE], lanes[lane, READY], speed[lane, RATE] = NEVER, 1, 1.0
            for pool in range(num_pools):
                load[pool] -= asked[lane, pool]
                asked[lane, pool] = 0
            for other in range(num_lanes):
                if lanes[other, AWAITED] == lane and lanes[lane, ENDED] >= lanes[other, NEEDED]:
                    if hand_over is not None:
                        lanes[other, AWAITED], lanes[other, DUE] = NEWS, now + hand_over
                        continue
                    waited[lanes[other, STEP], other, deps[lanes[other, DEP], DEP_OP]] += now - lanes[other, SINCE]
                    lanes[other, AWAITED], lanes[other, READY] = NOBODY, 1
    return left


def is_compiled() -> bool:
    """Whether there is nothing left to compile, which takes seconds: it was done since this file changed last."""
    if not COMPILES or _run.signatures:  # type: ignore[attr-defined]
        return True
    kept = Path(_run.stats.cache_path or "nowhere").glob("event_loop._run-*.nbi")  # type: ignore[attr-defined]
    return any(one.stat().st_mtime > Path(__file__).stat().st_mtime for one in kept)


def run_events(kinds: Array, tasks: Tasks, costs: Costs, hand_over_ns: int = 0) -> tuple[Uses, int]:
    """What steps of these kinds do one behind the other, and how many tasks could never start.

    Other lanes notice a task's end `hand_over_ns` later. Dependencies on tasks before the first step have ended.
    """
    num_steps, num_lanes = len(kinds), tasks.lane_start.shape[1] - 1
    uses = Uses(
        np.zeros(num_steps, np.int64),
        np.zeros(num_steps, np.int64),
        np.zeros((num_steps, num_lanes), np.int64),
        np.zeros((num_steps, num_lanes), np.int64),
        np.zeros((num_steps, num_lanes, NUM_OPS), np.int64),
    )
    return uses, _run(kinds, *tasks, *costs, *uses, hand_over_ns or None)
