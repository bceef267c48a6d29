"""Times of tasks in a trace, from marks whose clock errs a little."""

from types import SimpleNamespace

import pytest

from engine.device import CLOCK_ERROR_NS
from engine.generation.trace import make_trace
from engine.lanes import Ran
from sim.schedule import Lane, LaneKind, Op, Task
from traces.errors import InputError

METADATA = {"origin": "emulated device"}


def ran(*times_ns, lane=LaneKind.GPU):
    """Tasks of one lane in order, by when each began and ended."""
    marks = [[SimpleNamespace(time_ns=1_000_000 + ns) for ns in pair] for pair in times_ns]
    tasks = [Task(i, Op.PRE_ATTN, Lane(lane), 0, i, 0) for i in range(len(marks))]
    return [Ran(task, *pair, 0) for task, pair in zip(tasks, marks, strict=True)]


def spans(done):
    return [(span.start_ns, span.end_ns) for span in make_trace(done, METADATA, {}).spans]


def test_what_the_clock_is_unsure_of_is_no_overlap():
    assert spans(ran((0, 5000), (4000, 9000), (8999, 8999))) == [(0, 5000), (5000, 9000), (9000, 9000)]
    assert spans(ran((0, 5000), (5000, 6000))) == [(0, 5000), (5000, 6000)]


def test_more_than_that_is_still_an_error():
    with pytest.raises(InputError, match="a lane does one thing at a time"):
        spans(ran((0, 2 * CLOCK_ERROR_NS), (CLOCK_ERROR_NS - 1, 3 * CLOCK_ERROR_NS)))
