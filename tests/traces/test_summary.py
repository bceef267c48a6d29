"""What a lane did and what it waited for add up to the run; bytes, ops and memory peaks are those of the trace."""

import pytest
from hypothesis import given, settings
from run_examples import runs
from trace_examples import SIMULATED, span, two_devices

from traces.analysis import summarise
from traces.analysis.summary import END_OF_RUN, OVERHEAD
from traces.trace import MEMORY, Counter, Trace


def lane(trace, name):
    return next(use for use in summarise(trace).lanes if use.lane == name)


def test_an_idle_lane_waited_for_the_task_on_another_lane_that_let_it_go_on():
    gpu = lane(two_devices(), ("GPU", 0))
    assert (gpu.num_spans, gpu.busy_ns, gpu.idle_ns) == (3, 5_390, 4_609)
    assert dict(gpu.waited_ns) == {"LoadHidden": 4_106, "AllReduce": 493, OVERHEAD: 10}


def test_waits_come_largest_first_and_the_end_of_the_run_is_one():
    h2d = lane(two_devices(), ("H2D", 0))
    assert list(h2d.waited_ns.items()) == [(END_OF_RUN, 4_892), ("PinWeights", 4_000), ("Attn", 307)]


def test_time_between_two_tasks_of_a_lane_is_overhead_unless_the_trace_says_what_for():
    spans = [span(0, end_ns=5), span(1, start_ns=8, end_ns=9, cause=0), span(2, start_ns=10, end_ns=11)]
    assert dict(lane(Trace(SIMULATED, spans), ("GPU", 0)).waited_ns) == {OVERHEAD: 4}
    spans[2] = spans[2]._replace(waited_for="Attn")
    assert dict(lane(Trace(SIMULATED, spans), ("GPU", 0)).waited_ns) == {OVERHEAD: 3, "Attn": 1}


def test_a_cause_that_ended_before_the_lane_was_free_held_nothing_up():
    spans = [span(0, end_ns=5), span(1, "Attn", "CPU", 0, 3), span(2, start_ns=7, end_ns=9, cause=1)]
    assert dict(lane(Trace(SIMULATED, spans), ("GPU", 0)).waited_ns) == {OVERHEAD: 2}


@settings(deadline=None)
@given(runs())
def test_what_a_lane_did_and_waited_for_adds_up_to_the_makespan(trace):
    summary = summarise(trace)
    assert summary.makespan_ns == trace.makespan_ns
    assert {use.lane: use.busy_ns for use in summary.lanes} == trace.busy_ns()
    for use in summary.lanes:
        assert use.busy_ns + sum(use.waited_ns.values()) == trace.makespan_ns
        assert sum(use.waited_ns.values()) == use.idle_ns
        assert min(use.waited_ns.values(), default=1) > 0
        assert 0 <= use.busy_share <= 1


@settings(deadline=None)
@given(runs())
def test_the_ops_hold_every_span_once(trace):
    ops = summarise(trace).ops
    assert sum(op.num_spans for op in ops) == len(trace.spans)
    assert sum(op.total_ns for op in ops) == sum(trace.busy_ns().values())
    assert [op.total_ns for op in ops] == sorted((op.total_ns for op in ops), reverse=True)


def test_an_op_is_told_by_lane_with_its_longest_span():
    (first, *rest) = [op for op in summarise(two_devices()).ops if op.op in ("Experts", "LoadWeights")]
    assert (first.op, first.lane, first.num_spans, first.total_ns, first.longest_ns) == (
        "Experts",
        "GPU",
        2,
        8_779,
        4_390,
    )
    assert [(op.num_spans, op.total_ns, op.longest_ns) for op in rest] == [(2, 1_401, 701)]


def test_copy_lanes_tell_their_bytes_and_mean_rate_and_others_do_not():
    told = summarise(two_devices()).to_dict()["lanes"]
    assert told["H2D"]["bytes"] == 8_500
    assert told["H2D"]["bytes_per_s"] == pytest.approx(8_500 / 800e-9)
    assert told["PIN:1"]["bytes"] == 4_000
    assert "bytes" not in told["GPU"]


def test_a_memory_peak_is_the_most_that_a_tier_of_a_device_or_the_host_held():
    samples = [(0, {"device": 5}, 0), (1, {"device": 9}, 0), (2, {"device": 7}, 0), (1, {"device": 6}, 1)]
    counters = [Counter(MEMORY, *sample) for sample in samples]
    counters += [Counter(MEMORY, 0, {"host": 3, "pinned": 1}), Counter(MEMORY, 1, {"host": 2, "pinned": 4})]
    counters.append(Counter("link rate (bytes/s)", 0, {"device": 99}, 0))
    peaks = summarise(Trace(SIMULATED, [span()], counters)).memory_peak_bytes
    assert peaks == {"device": 9, "device:1": 6, "host": 3, "pinned": 4}


def test_an_empty_trace_has_nothing_to_tell():
    told = summarise(Trace(SIMULATED)).to_dict()
    assert (told["makespan_s"], told["lanes"], told["ops"], told["memory_peak_bytes"]) == (0.0, {}, [], {})
