"""A trace is valid or does not exist; the critical path is the chain of causes, and accounts for every nanosecond."""

import math

import pytest
from hypothesis import given, settings
from trace_examples import SIMULATED, span, traces, two_devices

from traces.analysis import find_critical_path
from traces.analysis.critical_path import Gap
from traces.errors import InputError
from traces.trace import MAX_COUNT, MAX_NS, MEMORY, Counter, Trace


class TestSpan:
    def test_its_key_says_what_it_did_and_not_when(self):
        early = span(7, "Attn", "CPU", 0, 5, rank=1, step=2, layer=3, micro_batch=4, page=5)
        late = early._replace(id=8, start_ns=100, end_ns=200)
        assert early.key == late.key == ("Attn", 1, 2, 3, 4, 5)

    def test_its_duration_runs_from_start_to_end(self):
        assert span(start_ns=3, end_ns=10).duration_ns == 7


class TestTrace:
    def test_lanes_are_the_devices_by_rank_and_then_the_host(self):
        assert two_devices().lanes() == [
            ("GPU", 0), ("H2D", 0), ("D2H", 0), ("NET", 0), ("GPU", 1), ("H2D", 1), ("CPU", 0), ("PIN", 0), ("PIN", 1),
        ]  # fmt: skip

    def test_makespan_runs_from_the_first_start_to_the_last_end(self):
        trace = Trace(SIMULATED, [span(0, start_ns=5, end_ns=8), span(1, lane="CPU", start_ns=3, end_ns=6)])
        assert (trace.start_ns, trace.end_ns, trace.makespan_ns) == (3, 8, 5)

    def test_a_lane_is_busy_for_the_sum_of_its_spans(self):
        busy = two_devices().busy_ns()
        assert busy["GPU", 0] == 1_001 + 0 + (9_999 - 5_610)
        assert busy["H2D", 0] == 700 + 100
        assert busy["PIN", 1] == 3_999

    def test_spans_of_a_lane_come_in_time_order(self):
        trace = Trace(SIMULATED, [span(0, start_ns=5, end_ns=8), span(1, start_ns=0, end_ns=5), span(2, lane="CPU")])
        assert [one.id for one in trace.spans_of(("GPU", 0))] == [1, 0]

    def test_a_span_tells_its_key_by_name(self):
        found = span(4, "LoadWeights", "H2D", rank=1, layer=2)
        assert tuple(found.key_fields().values()) == found.key
        assert list(found.key_fields()) == ["op", "rank", "step", "layer", "micro_batch", "page"]

    def test_an_empty_trace_takes_no_time(self):
        assert Trace(SIMULATED).makespan_ns == 0
        assert Trace(SIMULATED).lanes() == []

    def test_spans_that_touch_or_have_no_length_do_not_overlap(self):
        Trace(SIMULATED, [span(0, start_ns=0, end_ns=5), span(1, start_ns=5, end_ns=5), span(2, start_ns=5, end_ns=9)])

    @pytest.mark.parametrize("origin", ["simulated", "emulated device", "published", "real GPU (NVIDIA H100)"])
    def test_its_origin_is_one_of_the_known(self, origin):
        assert Trace({"origin": origin}).origin == origin


@pytest.mark.parametrize(
    ("spans", "said"),
    [
        (
            [span(0, start_ns=0, end_ns=5), span(1, start_ns=4, end_ns=9)],
            "span 1 .* starts at 4 ns while span 0 .* 5 ns",
        ),
        ([span(1, start_ns=0, end_ns=5), span(2, start_ns=3, end_ns=3)], "span 2 .* starts at 3 ns while span 1"),
        ([span(0, lane="PIN", rank=1), span(1, lane="PIN", rank=1)], "same lane .PIN, rank 1."),
        ([span(4, end_ns=1), span(4, start_ns=1, end_ns=2)], "2 spans have the id 4"),
        ([span(0, cause=9)], "cause 9, which is no span's id"),
        ([span(0, start_ns=0), span(1, lane="CPU", start_ns=8, end_ns=9), span(2, "Attn", "H2D", cause=1)], "later"),
        ([span(0, lane="TPU")], "lane 'TPU': lanes are GPU, H2D, D2H, NET, CPU, PIN, DISK"),
        ([span(0, start_ns=5, end_ns=4)], "from 5 to 4 ns"),
        ([span(0, start_ns=-1)], "from -1 to 1 ns"),
        ([span(0, end_ns=MAX_NS + 1)], "2\\^51"),
        ([span(0, rank=-1)], "rank -1"),
        ([span(0, bytes=-1)], "-1 bytes"),
        ([span(0, flops=MAX_COUNT + 1)], "none may be negative, or above"),
    ],
)
def test_a_span_that_cannot_be_is_named(spans, said):
    with pytest.raises(InputError, match=said) as raised:
        Trace(SIMULATED, spans)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("origin", [None, 3, "measured", "real GPU", "real GPU ("])
def test_an_unknown_origin_is_refused(origin):
    with pytest.raises(InputError, match=r"metadata.origin is .* say 'simulated'"):
        Trace({"origin": origin})


@pytest.mark.parametrize("value", [(1, 2), {1: 2}, math.nan, {3}, {"a": [math.inf]}])
def test_metadata_that_json_would_change_is_refused(value):
    with pytest.raises(InputError, match=r"metadata\.policy"):
        Trace(SIMULATED | {"policy": value})


@pytest.mark.parametrize(
    ("counter", "said"),
    [
        (Counter(MEMORY, -1, {"device": 1}), "-1 ns"),
        (Counter(MEMORY, 0, {}), "it needs numbers"),
        (Counter(MEMORY, 0, {"device": math.nan}), "it needs numbers"),
        (Counter(MEMORY, 0, {"device": MAX_COUNT + 1}), "it needs numbers"),
        (Counter(MEMORY, 0, {"device": 1}, rank=-2), "rank -2"),
    ],
)
def test_a_counter_that_cannot_be_is_named(counter, said):
    with pytest.raises(InputError, match=said):
        Trace(SIMULATED, [], [counter])


class TestCriticalPath:
    def test_it_follows_causes_back_from_the_last_end(self):
        assert [one.id for one in find_critical_path(two_devices()).spans] == [1, 2, 3, 5, 6, 7, 8]

    def test_the_time_between_its_spans_is_a_gap(self):
        trace = two_devices()
        assert find_critical_path(trace).gaps == (Gap(5_600, 5_610, trace.spans[8]),)

    def test_times_are_told_by_op_and_by_lane_and_gaps_as_a_share(self):
        path = find_critical_path(two_devices())
        assert path.ns_by("op") == {
            "Experts": 4_389, "Attn": 3_506, "PreAttn": 1_001, "OffloadQKV": 500, "AllReduce": 493, "LoadHidden": 100,
            "OutProj": 0,
        }  # fmt: skip
        assert next(iter(path.ns_by("op"))) == "Experts"
        assert path.ns_by("lane") == {"GPU": 5_390, "CPU": 3_506, "D2H": 500, "NET": 493, "H2D": 100}
        assert path.gap_share == 10 / 9_999

    def test_a_path_that_starts_late_begins_with_a_gap(self):
        late = span(1, start_ns=7, end_ns=20, waited_for="arrival")
        path = find_critical_path(Trace(SIMULATED, [span(0, "PinWeights", "PIN", 0, 5), late]))
        assert path.spans == (late,)
        assert path.gaps == (Gap(0, 7, late),)

    def test_of_spans_that_end_together_the_one_with_the_lowest_id_counts(self):
        trace = Trace(SIMULATED, [span(5, end_ns=9), span(3, "Attn", "CPU", 2, 9), span(4, "Head", "D2H", 1, 9)])
        assert [one.id for one in find_critical_path(trace).spans] == [3]

    def test_clocks_that_let_a_span_start_before_its_cause_ended_count_no_time_twice(self):
        spans = [span(0, "OffloadQKV", "D2H", 0, 10), span(1, "Attn", "CPU", 8, 20, cause=0)]
        path = find_critical_path(Trace(SIMULATED, spans))
        assert path.on_path_ns == (10, 10)
        assert path.gaps == ()

    def test_causes_in_a_circle_are_refused(self):
        spans = [span(0, "Attn", "CPU", cause=1), span(1, cause=0)]
        with pytest.raises(InputError, match=r"span 0 \(Attn\) is its own cause"):
            find_critical_path(Trace(SIMULATED, spans))

    def test_an_empty_trace_has_an_empty_path(self):
        path = find_critical_path(Trace(SIMULATED))
        assert (path.spans, path.gaps, path.gap_share, path.ns_by("op")) == ((), (), 0.0, {})

    @settings(max_examples=40, deadline=None)
    @given(traces())
    def test_its_spans_and_gaps_add_up_to_the_makespan(self, trace):
        path = find_critical_path(trace)
        assert sum(path.on_path_ns) + sum(gap.end_ns - gap.start_ns for gap in path.gaps) == trace.makespan_ns
        assert all(0 <= ns <= one.duration_ns for ns, one in zip(path.on_path_ns, path.spans, strict=True))
        assert [one.cause for one in path.spans[1:]] == [one.id for one in path.spans[:-1]]
        if trace.spans:
            assert path.spans[0].cause == -1
            assert path.spans[-1].end_ns == trace.end_ns
            assert sum(path.ns_by("op").values()) == sum(path.ns_by("lane").values()) == sum(path.on_path_ns)


@settings(max_examples=40, deadline=None)
@given(traces())
def test_lanes_are_busy_for_no_longer_than_the_makespan(trace):
    assert all(0 <= busy <= trace.makespan_ns for busy in trace.busy_ns().values())
    assert sum(trace.busy_ns().values()) == sum(one.duration_ns for one in trace.spans)
