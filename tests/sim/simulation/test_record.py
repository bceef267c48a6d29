"""A simulated run as a trace: every task in it, and counters that agree with the memory plan and the link."""

from collections import Counter as Tally, defaultdict
from itertools import pairwise

import pytest
from sim_examples import few_layers, made_setup, round_machine, with_hand_over
from trace_rules import assert_obeys_rules

from sim.cost.memory import kv_bytes, kv_bytes_on_device
from sim.problem import Workload
from sim.schedule import LaneKind, Op, over_ranks, registered
from sim.simulation import record
from traces.analysis import find_critical_path
from traces.errors import InputError
from traces.files import read_trace, write_trace
from traces.trace import LINK_RATE, MEMORY, Trace

ALL = sorted(registered())
HOST = -1
UNEVEN = Workload("uneven", (30, 60, 110), 6)


def usual(name, *, ranks=1, gen_len=6, window=None, hand_over_us=0, **policy):
    """Three layers, three micro-batches of up to four uneven prompts."""
    model = few_layers("mixtral-8x7b", 3, window=window)
    workload = UNEVEN.with_(gen_len=gen_len)
    machine = with_hand_over(round_machine(ranks), hand_over_us)
    return made_setup(name, 4, 3, model=model, machine=machine, workload=workload, **policy)


CASES = [
    *((name, {}) for name in ALL),
    *((name, {"ranks": 2}) for name in ALL),
    *((name, {"window": 64, "gen_len": 3}) for name in ALL),
    *((name, {"pin_weights": True, "experts_on_device": 0.25}) for name in ("cgopipe", "flexgen")),
    ("zero", {"pin_weights": True}),
    *((name, {"pin_weights": 0.6}) for name in ("cgopipe", "fastdecode", "zero")),
    ("cgopipe", {"attention": "gpu"}),
    ("cgopipe", {"attention": "gpu", "kv_on_device": 0.5}),
    ("cgopipe", {"attention": "gpu", "kv_on_device": 1.0}),
    ("cgopipe", {"experts_on_device": 1.0, "kv_bits": 8}),
    ("cgopipe", {"pages": 7}),
    ("flexgen", {"kv_on_device": 0.3}),
    ("flexgen", {"kv_on_device": 0.5, "ranks": 2}),
    ("flexgen", {"kv_on_device": 0.5, "window": 64, "gen_len": 3}),
    *((name, {"gen_len": 1}) for name in ALL),
    *((name, {"hand_over_us": 200}) for name in ALL),
    ("cgopipe", {"ranks": 2, "hand_over_us": 5000}),
]


@pytest.fixture(
    scope="module", params=CASES, ids=[f"{name}-{'-'.join(map(str, changes.values()))}" for name, changes in CASES]
)
def recorded(request):
    name, changes = request.param
    setup = usual(name, **changes)
    return setup, record(setup, {})


def samples(trace, name):
    """Per (rank, series), its values in time order."""
    values = defaultdict(list)
    for counter in trace.counters:
        if counter.name == name:
            for series, value in counter.values.items():
                values[counter.rank, series].append((counter.time_ns, value))
    return values


def num_steps(setup):
    return min(3, setup.last_step + 1)


class TestSpans:
    def test_every_task_of_the_recorded_steps_is_there_once(self, recorded):
        setup, trace = recorded
        stop = num_steps(setup)
        steps = setup.schedule.steps(setup.shape, 0, stop, last=setup.last_step)
        tasks = [task for step in over_ranks(steps, setup.num_ranks) for task in step]
        assert Tally(span.key for span in trace.spans) == Tally(task.key for task in tasks)
        assert {span.id: span.key for span in trace.spans} == {task.id: task.key for task in tasks}
        assert {span.step for span in trace.spans} >= set(range(stop))

    def test_spans_tell_what_they_cost_and_what_bound_them(self, recorded):
        setup, trace = recorded
        costs = setup.costs()
        steps = setup.schedule.steps(setup.shape, 0, num_steps(setup), last=setup.last_step)
        spans = {span.key: span for span in trace.spans}
        for task in (task for step in over_ranks(steps, setup.num_ranks) for task in step):
            span = spans[task.key]
            cost = costs(task)
            assert (span.bytes, span.flops, span.bound) == (cost.bytes, cost.flops, cost.bound)
            assert (span.lane, span.rank) == task.lane
            assert span.duration_ns >= cost.duration_ns, "sharing a pool can only make it longer"
            assert span.bound

    def test_nothing_starts_before_what_it_waits_for_has_ended(self, recorded):
        setup, trace = recorded
        ends = {span.id: span.end_ns for span in trace.spans}
        starts = {span.id: span.start_ns for span in trace.spans}
        steps = setup.schedule.steps(setup.shape, 0, num_steps(setup), last=setup.last_step)
        for task in (task for step in over_ranks(steps, setup.num_ranks) for task in step):
            assert all(ends[dep] <= starts[task.id] for dep in task.deps)

    def test_the_critical_path_leads_without_a_gap_from_the_start_to_the_end(self, recorded):
        setup, trace = recorded
        hand_over_ns = setup.costs().hand_over_ns
        path = find_critical_path(trace)
        assert path.spans[0].start_ns == 0
        assert path.spans[-1].end_ns == trace.end_ns
        changes = 0
        for before, after in pairwise(path.spans):
            crosses = (before.lane, before.rank) != (after.lane, after.rank)
            assert after.start_ns - before.end_ns == hand_over_ns * crosses
            changes += crosses
        assert path.gaps_ns == hand_over_ns * changes


class TestMemory:
    def test_no_tier_exceeds_its_plan_or_falls_below_zero(self, recorded):
        setup, trace = recorded
        planned = setup.memory.peak_bytes()
        for (_, tier), values in samples(trace, MEMORY).items():
            assert all(0 <= value <= planned[tier] for _, value in values), tier

    def test_every_device_and_the_host_are_counted_from_the_start(self, recorded):
        setup, trace = recorded
        values = samples(trace, MEMORY)
        ranks = range(setup.num_ranks)
        assert set(values) == {*((rank, "device") for rank in ranks), (HOST, "host"), (HOST, "pinned")}
        assert all(series[0][0] == 0 for series in values.values())

    def test_the_device_gets_as_full_as_planned(self, recorded):
        """But for the tokens that later steps add to a cache there, and a second slot that nobody ever fills."""
        setup, trace = recorded
        plan, policy = setup.memory, setup.policy
        cache = kv_bytes_on_device(setup.problem.model, policy, setup.batch, num_steps(setup) - 1, setup.shape)
        later = plan.device.get("kv cache", 0) - cache / setup.num_ranks
        one_by_one = setup.schedule.name in ("accelerate", "n-cpu-moe")
        unused = plan.device.get("weight slots", 0) / 2 if one_by_one else 0
        for rank in range(setup.num_ranks):
            most = max(value for _, value in samples(trace, MEMORY)[rank, "device"])
            assert most == pytest.approx(plan.peak_bytes()["device"] - later - unused, rel=1e-3)
            assert most >= (0.8 if not unused else 0.4) * plan.peak_bytes()["device"]

    def test_in_the_end_the_host_holds_its_weights_and_the_cache_so_far(self, recorded):
        setup, trace = recorded
        asked = setup.problem.model, setup.policy, setup.batch, num_steps(setup) - 1
        on_host = kv_bytes(*asked) - kv_bytes_on_device(*asked, setup.shape)
        values = samples(trace, MEMORY)
        stays = ("streamed weights", "attention exchange", "kv buffers", "experts on the host", "expert exchange")
        in_host, pinned = (
            sum(tier.get(part, 0) for part in stays) for tier in (setup.memory.host, setup.memory.pinned)
        )
        staged = values[HOST, "pinned"][-1][1] - pinned
        if setup.memory.pinned.get("kv cache"):
            staged -= on_host
        assert values[HOST, "host"][-1][1] == in_host + on_host + staged
        assert 0 <= staged <= setup.memory.pinned.get("staging", 0)

    def test_staging_is_filled_to_the_plan(self):
        for name, layers in (("cgopipe", 1), ("fastdecode", 2)):
            setup = usual(name)
            most = max(value for _, value in samples(record(setup, {}), MEMORY)[HOST, "pinned"])
            assert setup.memory.pinned["staging"] == layers * 8 * 2 * 3 * 4096 * 14336
            whole = setup.memory.peak_bytes()["pinned"]
            assert whole - setup.memory.pinned["hidden states"] <= most <= whole

    def test_a_layers_weights_are_held_until_the_last_task_that_reads_them(self, recorded):
        setup, trace = recorded
        plan, ranks = setup.memory, setup.num_ranks
        stays = plan.peak_bytes()["device"] - plan.device.get("weight slots", 0) - plan.device.get("kv cache", 0)
        loaded = Tally()
        for span in trace.spans:
            if span.op in (Op.LOAD_WEIGHTS.value, Op.LOAD_WEIGHTS_PAGEABLE.value):
                loaded[span.rank, span.step, span.layer] += span.bytes
        held = {rank: samples(trace, MEMORY)[rank, "device"] for rank in range(ranks)}
        for span in trace.spans:
            if span.op in (Op.POST_ATTN.value, Op.EXPERTS.value, Op.DEVICE_EXPERTS.value):
                here = [value for time_ns, value in held[span.rank] if time_ns < span.end_ns]
                assert here[-1] >= stays + loaded[span.rank, span.step, span.layer]

    def test_a_layers_weights_are_gone_when_it_is_computed(self):
        """Accelerate's head runs with no weights but what stays on the device."""
        setup = usual("accelerate")
        trace, plan = record(setup, {}), setup.memory
        stays = plan.peak_bytes()["device"] - plan.device["weight slots"] - plan.device["kv cache"]
        values = samples(trace, MEMORY)[0, "device"]
        heads = [span for span in trace.spans if span.op == Op.HEAD.value]
        assert len(heads) == 3
        for head in heads:
            held = [value for time_ns, value in values if time_ns <= head.start_ns][-1]
            assert held == stays + kv_bytes(setup.problem.model, setup.policy, setup.batch, head.step)


class TestLinks:
    def test_no_direction_carries_more_than_it_can(self, recorded):
        setup, trace = recorded
        limit = setup.problem.hardware.link
        for (_, direction), values in samples(trace, LINK_RATE).items():
            most = limit.h2d_bytes_per_s if direction == "H2D" else limit.d2h_bytes_per_s
            assert all(0 <= value <= most * (1 + 1e-9) for _, value in values)
            assert values[-1][1] == 0, "at the end nothing is on the link"

    def test_the_rate_over_time_is_what_was_copied(self, recorded):
        setup, trace = recorded
        for rank in range(setup.num_ranks):
            for kind in (LaneKind.H2D, LaneKind.D2H):
                copied = sum(span.bytes for span in trace.spans if (span.lane, span.rank) == (kind, rank))
                values = samples(trace, LINK_RATE)[rank, kind.value]
                pairs = pairwise(values)
                carried = sum(rate * (end - start) * 1e-9 for (start, rate), (end, _) in pairs)
                assert carried == pytest.approx(copied, rel=1e-6)


class TestFile:
    def test_metadata_say_what_was_run(self):
        trace = record(usual("cgopipe"), {"input_hash": "abc"})
        assert trace.origin == "simulated"
        assert trace.metadata["schedule"] == "cgopipe"
        assert trace.metadata["model"] == "mixtral-8x7b"
        assert trace.metadata["hardware"] == "round"
        assert trace.metadata["steps"] == [0, 3]
        assert trace.metadata["input_hash"] == "abc"
        assert trace.metadata["policy"] == usual("cgopipe").policy.to_dict()

    def test_it_holds_as_many_steps_as_asked_for_and_as_there_are(self):
        for asked, gen_len, held in ((1, 6, 1), (5, 6, 5), (9, 6, 6), (3, 2, 2)):
            trace = record(usual("cgopipe", gen_len=gen_len), {}, asked)
            assert trace.metadata["steps"] == [0, held]
            assert {span.step for span in trace.spans if span.op == Op.HEAD.value} == set(range(held))

    @pytest.mark.parametrize(("ranks", "hand_over_us"), [(1, 0), (2, 0), (2, 120)])
    @pytest.mark.parametrize("name", ALL)
    def test_it_survives_a_file_and_the_file_obeys_the_rules(self, tmp_path, name, ranks, hand_over_us):
        trace = record(usual(name, ranks=ranks, hand_over_us=hand_over_us), {})
        path = tmp_path / "trace.json.gz"
        write_trace(trace, path)
        again = read_trace(path)
        assert isinstance(again, Trace)
        assert again.metadata == trace.metadata
        assert again.spans == trace.spans
        assert [counter._replace(values=dict(counter.values)) for counter in again.counters] == trace.counters
        assert_obeys_rules(path)

    def test_the_same_run_gives_the_same_trace(self):
        assert record(usual("cgopipe"), {}) == record(usual("cgopipe"), {})

    def test_what_does_not_fit_is_not_recorded(self):
        setup = made_setup(machine=round_machine(device_memory__capacity=1e9))
        with pytest.raises(InputError, match=r"device memory is [\d,]+ bytes short"):
            record(setup, {})
