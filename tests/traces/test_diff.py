"""Two runs are laid side by side task by task, and where the time went adds up to the difference of the makespans."""

import pytest
from hypothesis import given, settings
from run_examples import runs
from trace_examples import SIMULATED, span, two_devices

from traces.analysis import align, diff_traces, find_critical_path
from traces.trace import Trace


def before():
    """Attention holds PostAttn up: PreAttn, Attn and PostAttn make the run 50 ns long."""
    return Trace(
        SIMULATED,
        [
            span(0, "PreAttn", end_ns=10),
            span(1, "Attn", "CPU", 10, 30, cause=0),
            span(2, "PostAttn", start_ns=30, end_ns=50, cause=1),
        ],
    )


def after():
    """Weights hold PostAttn up, and 5 ns go by before it starts: 65 ns."""
    return Trace(
        SIMULATED,
        [
            span(10, "LoadWeights", "H2D", 0, 40, page=0),
            span(11, "PreAttn", end_ns=12),
            span(12, "Attn", "CPU", 12, 22, cause=11),
            span(13, "PostAttn", start_ns=45, end_ns=65, cause=10),
        ],
    )


class TestAlignment:
    def test_tasks_are_paired_by_what_they_did_and_others_are_listed(self):
        aligned = align(before(), after())
        assert [(a.id, b.id) for a, b in aligned.pairs] == [(0, 11), (1, 12), (2, 13)]
        assert aligned.only_a == []
        assert [one.id for one in aligned.only_b] == [10]

    def test_what_was_done_several_times_is_paired_in_order_of_time(self):
        twice = [span(5, start_ns=20, end_ns=21), span(6, start_ns=0, end_ns=1)]
        thrice = [span(1, end_ns=1), span(2, start_ns=1, end_ns=2), span(3, start_ns=2, end_ns=3)]
        aligned = align(Trace(SIMULATED, twice), Trace(SIMULATED, thrice))
        assert [(a.id, b.id) for a, b in aligned.pairs] == [(6, 1), (5, 2)]
        assert [one.id for one in aligned.only_b] == [3]
        assert [one.id for one in align(Trace(SIMULATED, thrice), Trace(SIMULATED, twice)).only_a] == [3]

    @settings(deadline=None)
    @given(runs(), runs())
    def test_every_span_is_in_one_pair_or_in_one_list(self, a, b):
        aligned = align(a, b)
        assert sorted([x.id for x, _ in aligned.pairs] + [x.id for x in aligned.only_a]) == sorted(
            x.id for x in a.spans
        )
        assert sorted([x.id for _, x in aligned.pairs] + [x.id for x in aligned.only_b]) == sorted(
            x.id for x in b.spans
        )
        assert all(x.key == y.key for x, y in aligned.pairs)
        assert not {x.key for x in aligned.only_a} & {x.key for x in aligned.only_b}


class TestAccount:
    def test_where_the_time_went_worked_out_by_hand(self):
        found = diff_traces(before(), after())
        account = found.account
        parts = {
            part.op: (part.a_ns, part.b_ns, part.same_tasks_ns, part.joined_path_ns, part.left_path_ns)
            for part in account.paths
        }
        assert parts == {
            "LoadWeights": (0, 40, 0, 40, 0),
            "PreAttn": (10, 0, 0, 0, 10),
            "Attn": (20, 0, 0, 0, 20),
            "PostAttn": (20, 20, 0, 0, 0),
        }
        assert (account.gaps.change_ns, account.total_ns, found.change_ns) == (5, 15, 15)

    def test_tasks_on_both_paths_that_take_longer_are_told_apart_from_those_that_came_and_went(self):
        slower = [one._replace(start_ns=one.start_ns * 3, end_ns=one.end_ns * 3) for one in before().spans]
        account = diff_traces(before(), Trace(SIMULATED, slower)).account
        assert {part.op: part.same_tasks_ns for part in account.paths} == {"PreAttn": 20, "Attn": 40, "PostAttn": 40}
        assert all(part.joined_path_ns == part.left_path_ns == 0 for part in account.paths)

    def test_a_task_that_went_to_another_lane_left_the_path_of_one_and_joined_that_of_the_other(self):
        on_gpu = [one._replace(lane="GPU") for one in before().spans]
        parts = {(part.op, part.lane): part for part in diff_traces(before(), Trace(SIMULATED, on_gpu)).account.paths}
        assert (parts["Attn", "CPU"].left_path_ns, parts["Attn", "GPU"].joined_path_ns) == (20, 20)

    @settings(deadline=None)
    @given(runs(), runs())
    def test_it_adds_up_to_the_difference_of_the_makespans_for_any_two_traces(self, a, b):
        account = diff_traces(a, b).account
        assert account.total_ns == b.makespan_ns - a.makespan_ns
        for part in account.paths:
            assert part.b_ns - part.a_ns == part.same_tasks_ns + part.joined_path_ns - part.left_path_ns
        for path, spent in ((find_critical_path(a), "a_ns"), (find_critical_path(b), "b_ns")):
            by_op = {
                op: sum(getattr(part, spent) for part in account.paths if part.op == op) for op in path.ns_by("op")
            }
            assert by_op == path.ns_by("op")

    @settings(deadline=None)
    @given(runs())
    def test_nothing_changed_between_a_run_and_itself(self, trace):
        found = diff_traces(trace, trace)
        assert all(part.change_ns == part.joined_path_ns == part.left_path_ns == 0 for part in found.account.paths)
        assert found.alignment.only_a == found.alignment.only_b == []
        assert all(op.mean_abs_error in (0.0, None) and op.bias in (0.0, None) for op in found.ops)


class TestOps:
    def test_errors_and_bias_are_of_the_second_run_against_the_first(self):
        a = [span(0, end_ns=10), span(1, start_ns=10, end_ns=30, layer=1)]
        b = [span(0, end_ns=15), span(1, start_ns=15, end_ns=25, layer=1)]
        (op,) = diff_traces(Trace(SIMULATED, a), Trace(SIMULATED, b)).ops
        assert (op.op, op.tasks, op.a_ns, op.b_ns) == ("PostAttn", 2, 30, 25)
        assert op.mean_abs_error == pytest.approx((5 / 10 + 10 / 20) / 2)
        assert op.bias == pytest.approx(-5 / 30)

    def test_a_task_without_duration_in_the_first_run_has_no_relative_error(self):
        (op,) = diff_traces(Trace(SIMULATED, [span(end_ns=0)]), Trace(SIMULATED, [span(end_ns=5)])).ops
        assert (op.mean_abs_error, op.bias, op.b_ns) == (None, None, 5)

    def test_an_op_that_changed_lanes_is_told_apart(self):
        a, b = (Trace(SIMULATED, [span(0, "Attn", lane)]) for lane in ("GPU", "CPU"))
        (op,) = diff_traces(a, b).ops
        assert (op.lane_a, op.lane_b) == ("GPU", "CPU")


def test_lanes_of_either_run_tell_their_busy_time_in_both():
    busy = diff_traces(before(), after()).busy_ns
    assert busy == {("GPU", 0): (30, 32), ("H2D", 0): (0, 40), ("CPU", 0): (20, 10)}
    assert diff_traces(two_devices(), two_devices()).busy_ns["GPU", 1] == (4_390, 4_390)


def test_tasks_of_one_run_alone_are_counted_per_op_and_the_first_are_named():
    extra = [span(n, "LoadKV", "H2D", n, n + 1, layer=n) for n in range(20, 28)]
    told = diff_traces(Trace(SIMULATED, [*before().spans, *extra]), after()).to_dict()
    assert (told["only_in_a"]["tasks"], told["only_in_a"]["by_op"]) == (8, {"LoadKV": 8})
    assert told["only_in_a"]["total_s"] == pytest.approx(8e-9)
    assert [task["layer"] for task in told["only_in_a"]["first"]] == [20, 21, 22, 23, 24]
    assert told["only_in_b"]["first"] == [
        {"op": "LoadWeights", "rank": 0, "step": 1, "layer": 0, "micro_batch": 0, "page": 0}
    ]
