"""The critical path in parts: per op, per lane, stretches on one lane, and gaps apart from them."""

from hypothesis import given, settings
from run_examples import runs
from trace_examples import SIMULATED, span, two_devices

from traces.analysis import find_critical_path
from traces.trace import Trace


def test_time_and_gaps_per_op_of_a_path_worked_out_by_hand():
    path = find_critical_path(two_devices())
    assert path.ns_by("op") == {
        "Experts": 4_389, "Attn": 3_506, "PreAttn": 1_001, "OffloadQKV": 500, "AllReduce": 493, "LoadHidden": 100,
        "OutProj": 0,
    }  # fmt: skip
    assert path.ns_by("lane") == {"GPU": 5_390, "CPU": 3_506, "D2H": 500, "NET": 493, "H2D": 100}
    assert path.gap_ns_by("op") == {"Experts": 10}
    assert path.gaps_ns == 10


def test_a_stretch_is_what_follows_on_one_lane_without_its_gaps():
    spans = [
        span(0, "PreAttn", end_ns=5),
        span(1, "PostAttn", start_ns=7, end_ns=20, cause=0),
        span(2, "Attn", "CPU", 20, 29, cause=1),
        span(3, "PostAttn", start_ns=29, end_ns=30, cause=2),
    ]
    stretches = find_critical_path(Trace(SIMULATED, spans)).stretches()
    assert [[one.id for one in stretch.spans] for stretch in stretches] == [[0, 1], [2], [3]]
    assert [stretch.on_path_ns for stretch in stretches] == [18, 9, 1]
    assert stretches[0].ns_by_op == {"PostAttn": 13, "PreAttn": 5}


def test_stretches_of_two_devices_are_apart():
    spans = [span(0, end_ns=5), span(1, start_ns=5, end_ns=9, rank=1, cause=0)]
    assert len(find_critical_path(Trace(SIMULATED, spans)).stretches()) == 2


@settings(deadline=None)
@given(runs())
def test_ops_lanes_and_stretches_each_add_up_with_the_gaps_to_the_makespan(trace):
    path = find_critical_path(trace)
    for parts in (path.ns_by("op").values(), path.ns_by("lane").values(), [one.on_path_ns for one in path.stretches()]):
        assert sum(parts) + path.gaps_ns == trace.makespan_ns
    assert sum(path.gap_ns_by("op").values()) == path.gaps_ns
    assert all(sum(one.ns_by_op.values()) == one.on_path_ns for one in path.stretches())
    assert sorted(one.id for stretch in path.stretches() for one in stretch.spans) == sorted(s.id for s in path.spans)


def test_as_json_it_holds_the_longest_of_what_is_asked_for():
    told = find_critical_path(two_devices()).to_dict(top=2)
    assert told["makespan_s"] == 9_999e-9
    assert [stretch["by_op_s"] for stretch in told["stretches"]] == [{"Experts": 4_389e-9}, {"Attn": 3_506e-9}]
    assert told["gaps"]["longest"] == [
        {
            "start_s": 5_600e-9,
            "s": 10e-9,
            "before": {"op": "Experts", "rank": 0, "step": 1, "layer": 0, "micro_batch": 0, "page": -1},
        }
    ]
    assert told["gaps"]["s"] == 10e-9
    assert told["by_lane"]["CPU"] == {"s": 3_506e-9, "share": 3_506 / 9_999}


def test_a_stretch_in_json_begins_with_its_first_task_and_ends_with_its_last():
    spans = [
        span(0, "PreAttn", end_ns=5),
        span(1, "PostAttn", start_ns=7, end_ns=20, cause=0),
        span(2, "Attn", "CPU", 20, 29, cause=1),
    ]
    longest, other = find_critical_path(Trace(SIMULATED, spans)).to_dict(top=2)["stretches"]
    assert [longest[key] for key in ("lane", "start_s", "end_s", "on_path_s", "tasks")] == ["GPU", 0.0, 20e-9, 18e-9, 2]
    assert (longest["first"]["op"], longest["last"]["op"]) == ("PreAttn", "PostAttn")
    assert [other[key] for key in ("lane", "start_s", "end_s", "on_path_s", "tasks")] == ["CPU", 20e-9, 29e-9, 9e-9, 1]
