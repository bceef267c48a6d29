"""Times of tasks in a trace, from marks of a device's clock, which errs a little, and of the host's, which does not."""

from types import SimpleNamespace

import pytest

from engine.generation.trace import make_trace
from engine.lanes import Ran
from sim.schedule import Lane, LaneKind, Op, Task
from traces.errors import InputError

METADATA = {"origin": "emulated device"}


def traced(*times_ns, of_device):
    """Tasks of one lane in order, by when each began and ended."""
    pairs = [[SimpleNamespace(time_ns=10**6 + ns, of_device=of_device) for ns in pair] for pair in times_ns]
    tasks = [Task(i, Op.PRE_ATTN, Lane(LaneKind.GPU), 0, i, 0) for i in range(len(pairs))]
    return make_trace([Ran(task, *pair, 0) for task, pair in zip(tasks, pairs, strict=True)], METADATA, {})


def test_what_a_devices_clock_is_unsure_of_is_no_overlap():
    trace = traced((0, 5000), (4000, 9000), (8999, 8990), (200_000, 190_000), of_device=True)
    assert [(span.start_ns, span.end_ns) for span in trace.spans] == [
        (0, 5000),
        (5000, 9000),
        (9000, 9000),
        (200_000, 200_000),
    ]
    assert trace.metadata["clock_shift_ns"] == 10_000


def test_times_in_order_stay_as_they_are():
    trace = traced((0, 5000), (5000, 6000), (7000, 7000), of_device=True)
    assert [(span.start_ns, span.end_ns) for span in trace.spans] == [(0, 5000), (5000, 6000), (7000, 7000)]
    assert "clock_shift_ns" not in trace.metadata


def test_on_the_hosts_own_clock_it_is_an_error():
    with pytest.raises(InputError, match="a lane does one thing at a time"):
        traced((0, 5000), (4999, 9000), of_device=False)
