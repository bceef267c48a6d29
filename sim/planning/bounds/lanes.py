"""The least time of a single policy, whatever it is, from the work of its lanes: for policies that are off the grid."""

from collections import defaultdict

from sim.cost import Setup
from sim.planning.bounds.durations import segments
from sim.schedule import LaneKind


def lanes_tokens_per_s(setup: Setup) -> float:
    """Tokens a second that the lanes of a policy allow at best, each task as fast as it is alone.

    Decode on the GPU and the CPU begins when the GPU has ended prefill; what the link does may begin before.
    """
    prefill = _work_s(setup, 0)
    decode, link = defaultdict[LaneKind, float](float), prefill[LaneKind.H2D]
    for step, count in segments(setup.problem):
        work = _work_s(setup, step)
        for kind, seconds in work.items():
            decode[kind] += count * seconds
        link += count * work[LaneKind.H2D]
    last = _work_s(setup, setup.last_step)[LaneKind.H2D] if setup.last_step else 0.0  # the last one fetches less
    computed = prefill[LaneKind.GPU] + max(decode[LaneKind.GPU], decode[LaneKind.CPU])
    return setup.batch.generated_tokens / max(computed, link - last)


def _work_s(setup: Setup, step: int) -> defaultdict[LaneKind, float]:
    """Seconds of work on the lanes of one device in a step."""
    costs, found = setup.costs(), defaultdict[LaneKind, float](float)
    more = setup.last_step > 0  # a single token fetches nothing for a step behind it
    for tasks in setup.schedule.steps(setup.shape, step, step + 1, last=setup.last_step + more):
        for task in tasks:
            found[task.lane.kind] += costs(task).duration_ns * 1e-9
    return found
