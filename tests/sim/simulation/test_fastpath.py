"""The fast path against the SimPy simulator and the schedules' own tasks: the same steps, to the nanosecond."""

import os
import subprocess
import sys
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given, strategies as st
from program_tasks import as_told, told
from schedule_rules import EVERY, HAND_OVERS, Backwards, contended, examples, random_durations, shapes, task_lists
from setup_examples import SETTINGS, any_setup
from sim_examples import few_layers, made_setup, preset, round_machine, with_hand_over

from sim.cost import Cost, Setup
from sim.problem import Hardware, Model, Policy, Problem, Workload
from sim.schedule import CGOPipe, DeadlockError, Op, PipelineShape, SlotLayout, by_name, over_ranks
from sim.simulation import Simulation, predict, task_ends
from sim.simulation.compiled import event_loop as fastpath_kernel, jit
from sim.simulation.compiled.dependencies import OP, OPS
from sim.simulation.compiled.event_loop import Costs, Tasks, run_events
from sim.simulation.compiled.program import program_of, repeated_layers

every_schedule = pytest.mark.parametrize("schedule", EVERY, ids=lambda schedule: schedule.name)


class MoreStaging(CGOPipe):
    """Made up for these tests: the layout is another class, so the program cannot know what it does."""

    class Deeper(SlotLayout):
        """Three layers of pages fit into staging."""

        def __init__(self, shape):
            super().__init__(shape, replace(CGOPipe.system, pinned_layers=3))

        @property
        def reach_steps(self):
            return 4

    def layout(self, shape):
        return self.Deeper(shape)


# the tasks ---------------------------------------------------------------------------------------------------------


@every_schedule
@examples(12)
@given(data=st.data(), last=st.integers(0, 6), ranks=st.sampled_from((1, 1, 2, 3)))
def test_a_program_is_the_tasks_of_the_schedule(schedule, data, last, ranks):
    """Of more layers than are issued, too."""
    shape = data.draw(shapes(schedule, 14, 4, 5))
    expected = as_told(over_ranks(schedule.steps(shape, 0, last + 1), ranks))
    program = program_of(schedule, shape, ranks, 0, last)
    kinds = program.kinds(0, last + 1, last)
    assert [told(program, kind) for kind in kinds] == expected


@pytest.mark.parametrize("schedule", [MoreStaging(), Backwards()], ids=lambda schedule: type(schedule).__name__)
@examples(8)
@given(data=st.data(), last=st.integers(0, 5))
def test_schedules_of_other_packages_have_programs_too(schedule, data, last):
    shape = data.draw(shapes(schedule, 7, 3, 3))
    program = program_of(schedule, shape, 1, 0, last)
    assert [told(program, kind) for kind in program.kinds(0, last + 1, last)] == as_told(
        schedule.steps(shape, 0, last + 1)
    )


@pytest.mark.parametrize(
    ("streamed", "left_out"),
    [
        ((True,) * 32, (0, 1, 28)),
        ((False, False, *[True] * 30), (2, 1, 26)),
        ((True, False) * 20, (0, 2, 16)),
        ((True, False, True, True), (0, 1, 0)),
        ((True,) * 5, (0, 1, 1)),
    ],
    ids=str,
)
def test_layers_that_repeat_are_found(streamed, left_out):
    assert repeated_layers(streamed) == left_out


# the kernel --------------------------------------------------------------------------------------------------------


def fast(schedule, shape, ranks, first, stop, last, costs, capacities, hand_over_ns=0):
    """Uses of steps with a cost of each task by itself, as (end, {lane: (busy, {op: waited})})."""
    program = program_of(schedule, shape, ranks, first, last)
    kinds = program.kinds(first, stop, last)
    steps = list(over_ranks(schedule.steps(shape, first, stop, last=last), ranks))
    size = program.lane_start[:, -1].max() + 1
    duration = np.zeros((len(kinds), size), np.int64)
    amount = np.zeros((len(kinds), size, len(capacities)), np.int64)
    for number, (kind, tasks) in enumerate(zip(kinds, steps, strict=True)):
        for lane, name in enumerate(program.lanes):
            own = [one for one in tasks if one.lane == name]
            for place, one in enumerate(own, program.lane_start[kind, lane]):
                duration[number, place] = costs[one.id].duration_ns
                for pool, share in costs[one.id].demands:
                    amount[number, place, pool] = share
    table = np.zeros((len(program.rows) + 1, 3), np.int64)
    table[:-1, fastpath_kernel.COST] = np.arange(len(program.rows))
    table[:-1, fastpath_kernel.HEADS] = [OPS[op] is Op.HEAD for op in program.rows[:, OP].tolist()]
    table[:, fastpath_kernel.DEPS] = program.dep_start
    tasks = Tasks(program.lane_start, table, program.deps)
    tables = Costs(duration, amount, np.array(capacities, np.int64))
    uses, left = run_events(np.array(kinds), tasks, tables, hand_over_ns)
    assert left == 0
    found = []
    for number in range(len(kinds)):
        lanes, behind = {}, {}
        for lane, name in enumerate(program.lanes):
            behind[name] = int(uses.behind_ns[number, lane])
            waited = {op: int(ns) for op, ns in zip(OPS, uses.waited_ns[number, lane], strict=True) if ns}
            lanes[name] = (int(uses.busy_ns[number, lane]), waited)
        ends = int(uses.end_ns[number]), int(uses.drained_ns[number]), {one: ns for one, ns in behind.items() if ns}
        found.append((*ends, that_did_something(lanes)))
    return found


def that_did_something(lanes):
    return {lane: did for lane, did in lanes.items() if did != (0, {})}


def simpy_uses(steps, cost, capacities=(), hand_over_ns=0):
    uses = []
    Simulation(steps, cost, capacities, on_step=uses.append, hand_over_ns=hand_over_ns).run()
    return [as_uses(use) for use in uses]


def as_uses(use):
    """A StepUse without lanes that did nothing and waits of no length."""
    lanes = {}
    for lane, did in use.lanes.items():
        lanes[lane] = (did.busy_ns, {op: ns for op, ns in did.waited_ns.items() if ns})
    behind = {lane: ns for lane, ns in use.behind_ns.items() if ns}
    return use.end_ns, use.drained_ns, behind, that_did_something(lanes)


@st.composite
def windows(draw, schedule):
    """(shape, ranks, first step, stop, last step) of any pipeline."""
    shape = draw(shapes(schedule, 7, 4, 5))
    first = draw(st.sampled_from((0, 0, 0, 1, 5)))
    stop = first + draw(st.integers(1, 5))
    return shape, draw(st.sampled_from((1, 1, 2, 3))), first, stop, stop - 1 + draw(st.sampled_from((0, 0, 1, 4)))


@every_schedule
@examples(12)
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_without_sharing_steps_are_those_of_simpy(schedule, data, seed):
    shape, ranks, first, stop, last = data.draw(windows(schedule))
    steps = list(over_ranks(schedule.steps(shape, first, stop, last=last), ranks))
    durations = random_durations([one for tasks in steps for one in tasks], seed)
    costs = {id_: Cost(duration) for id_, duration in durations.items()}
    expected = simpy_uses(steps, lambda one: costs[one.id])
    assert fast(schedule, shape, ranks, first, stop, last, costs, ()) == expected


@every_schedule
@examples(12)
@given(data=st.data())
def test_with_sharing_steps_are_those_of_simpy(schedule, data):
    shape, ranks, first, stop, last = data.draw(windows(schedule))
    steps = list(over_ranks(schedule.steps(shape, first, stop, last=last), ranks))
    costs, capacities = data.draw(contended([one for tasks in steps for one in tasks]))
    expected = simpy_uses(steps, lambda one: costs[one.id], capacities)
    assert fast(schedule, shape, ranks, first, stop, last, costs, capacities) == expected


@every_schedule
@examples(12)
@given(data=st.data(), share=st.booleans(), hand_over_ns=HAND_OVERS)
def test_with_a_hand_over_steps_are_those_of_simpy(schedule, data, share, hand_over_ns):
    shape, ranks, first, stop, last = data.draw(windows(schedule))
    steps = list(over_ranks(schedule.steps(shape, first, stop, last=last), ranks))
    costs, capacities = data.draw(contended([one for tasks in steps for one in tasks]))
    capacities = capacities if share else tuple(1000 * one for one in capacities)
    expected = simpy_uses(steps, lambda one: costs[one.id], capacities, hand_over_ns)
    assert fast(schedule, shape, ranks, first, stop, last, costs, capacities, hand_over_ns) == expected


def arranged(steps):
    """Steps of tasks as arrays, each a kind of its own, and every task's row by id."""
    lanes = sorted({one.lane for tasks in steps for one in tasks})
    rows = [one for tasks in steps for lane in lanes for one in tasks if one.lane == lane]
    counts = np.array([[sum(one.lane == lane for one in tasks) for lane in lanes] for tasks in steps], np.int64)
    lane_start = np.zeros((len(steps), len(lanes) + 1), np.int64)
    lane_start[:, 1:] = counts.cumsum(axis=1)
    lane_start += np.concatenate([[0], counts.sum(axis=1).cumsum()[:-1]])[:, None]
    before, place = counts.cumsum(axis=0) - counts, {}
    for lane, name in enumerate(lanes):
        own = [one for tasks in steps for one in tasks if one.lane == name]
        place |= {one.id: (lane, at, OPS.index(one.op)) for at, one in enumerate(own)}
    table, deps = np.zeros((len(rows) + 1, 3), np.int64), []
    for row, one in enumerate(rows):
        table[row] = row, 0, len(deps)
        deps += [(on, at - before[one.step, on], op) for on, at, op in (place[dep] for dep in one.deps if dep in place)]
    table[len(rows), fastpath_kernel.DEPS] = len(deps)
    arrays = Tasks(lane_start, table, np.array(deps, np.int64).reshape(-1, 3))
    return arrays, {one.id: row for row, one in enumerate(rows)}


@examples(30)
@given(given=task_lists(), hand_over_ns=HAND_OVERS)
def test_any_tasks_on_any_ranks_end_when_the_law_says(given, hand_over_ns):
    """A step ends with its head: each task is the head once."""
    steps, durations = given
    tasks = [one for step in steps for one in step]
    arrays, row_of = arranged(steps)
    duration = np.tile([durations[id_] for id_ in row_of], (len(steps), 1))
    costs = Costs(duration, np.zeros((*duration.shape, 0), np.int64), np.zeros(0, np.int64))
    for id_, end_ns in task_ends(tasks, lambda one: durations[one.id], hand_over_ns).items():
        arrays.tasks[:, fastpath_kernel.HEADS] = np.arange(len(tasks) + 1) == row_of[id_]
        uses, left = run_events(np.arange(len(steps)), arrays, costs, hand_over_ns)
        assert (left, uses.end_ns[tasks[id_].step]) == (0, end_ns)


@pytest.mark.parametrize("hand_over_ns", [0, 12_345])
@pytest.mark.parametrize("schedule", [CGOPipe(), by_name("flexgen")], ids=lambda schedule: schedule.name)
@examples(6)
@given(seed=st.integers(0, 2**32))
def test_sharing_between_long_tasks_of_any_length_is_to_the_nanosecond(schedule, hand_over_ns, seed):
    """Hours in nanoseconds and gigabytes a second, where sums of fractions have few digits left."""
    random = Random(seed)
    shape = PipelineShape(5, 4, 4 if schedule.system.paged else 1, schedule.system.attention[0], (True,) * 5)
    steps = list(over_ranks(schedule.steps(shape, 0, 6), 2))
    kinds = [
        Cost(random.randrange(1, 10**9), tuple((pool, random.randrange(1, 10**11)) for pool in range(3)))
        for _ in range(40)
    ]
    costs = {one.id: random.choice(kinds) for tasks in steps for one in tasks}
    capacities = [random.randrange(10**10, 2 * 10**11) for _ in range(3)]
    expected = simpy_uses(steps, lambda one: costs[one.id], capacities, hand_over_ns)
    assert fast(schedule, shape, 2, 0, 6, 5, costs, capacities, hand_over_ns) == expected


@pytest.mark.parametrize("hand_over_ns", [0, 7])
def test_a_lane_needs_no_time_to_know_of_its_own_tasks(hand_over_ns):
    """GPU, GPU after it, and H2D after both: 5 and 5 without a wait, then 5 a hand-over later."""
    tasks = np.array([[0, 0, 0], [0, 1, 0], [0, 1, 1], [0, 0, 3]])
    deps = np.array([[0, 0, 0], [0, 0, 0], [0, 1, 0]])
    costs = Costs(np.full((1, 1), 5), np.zeros((1, 1, 0), np.int64), np.zeros(0, np.int64))
    uses, left = run_events(np.zeros(1, np.int64), Tasks(np.array([[0, 2, 3]]), tasks, deps), costs, hand_over_ns)
    assert (left, uses.end_ns.tolist()) == (0, [15 + hand_over_ns])
    assert uses.waited_ns[0, :, 0].tolist() == [0, 10 + hand_over_ns]


def test_tasks_that_wait_for_each_other_are_counted():
    """GPU and H2D each wait for the other's first task."""
    tasks = np.array([[0, 1, 0], [0, 0, 1], [0, 0, 2]])
    deps = np.array([[1, 0, 0], [0, 0, 0]])
    costs = Costs(np.full((1, 1), 5), np.zeros((1, 1, 0), np.int64), np.zeros(0, np.int64))
    for hand_over_ns in (0, 9):
        assert run_events(np.zeros(1, np.int64), Tasks(np.array([[0, 1, 2]]), tasks, deps), costs, hand_over_ns)[1] == 2
    assert (
        run_events(np.zeros(1, np.int64), Tasks(np.array([[0, 1, 2]]), tasks, deps - [[0, 0, 0], [0, 1, 0]]), costs)[1]
        == 0
    )


@pytest.mark.skipif(not jit.COMPILES, reason="numba is not installed: what runs is plain Python anyway")
@examples(5)
@given(data=st.data(), schedule=st.sampled_from(EVERY), hand_over_ns=st.sampled_from((0, 50)))
def test_plain_python_says_the_same(data, schedule, hand_over_ns):
    """Where numba is not installed."""
    shape, ranks, first, stop, last = data.draw(windows(schedule))
    steps = list(over_ranks(schedule.steps(shape, first, stop, last=last), ranks))
    costs, capacities = data.draw(contended([one for tasks in steps for one in tasks]))
    compiled = fast(schedule, shape, ranks, first, stop, last, costs, capacities, hand_over_ns)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_run", "_share_fairly"):
            patch.setattr(fastpath_kernel, name, getattr(fastpath_kernel, name).py_func)
        assert fast(schedule, shape, ranks, first, stop, last, costs, capacities, hand_over_ns) == compiled


# setups ------------------------------------------------------------------------------------------------------------


def told_of(prediction):
    """Everything but its wall time, waits of no length, and which of a phase's equally busy ranks is named."""
    lanes = {
        name: replace(lane, waited_s={op: waited for op, waited in lane.waited_s.items() if waited})
        for name, lane in prediction.lanes.items()
    }
    prefill, decode = (
        replace(phase, bottleneck=phase.bottleneck.partition(":")[0])
        for phase in (prediction.prefill, prediction.decode)
    )
    return replace(prediction, wall_s=0.0, lanes=lanes, prefill=prefill, decode=decode)


def assert_equal(setup, *, exact=False):
    """Both paths say the same to the last digit, the order of lanes included."""
    ours, theirs = predict(setup, exact=exact, compiled=True), predict(setup, exact=exact)
    assert told_of(ours) == told_of(theirs)
    assert list(ours.lanes) == list(theirs.lanes)


@given(setup=any_setup(st.integers(1, 45)))
@SETTINGS
def test_any_setup_takes_as_long_as_predicted(setup):
    assert_equal(setup)


@given(setup=any_setup(st.integers(1, 25)))
@SETTINGS
def test_every_step_of_any_setup_takes_as_long_as_predicted(setup):
    assert_equal(setup, exact=True)


@given(setup=any_setup(st.integers(1, 25)), microseconds=st.sampled_from((0.004, 30, 2_000, 500_000)))
@SETTINGS
def test_any_setup_takes_as_long_as_predicted_with_a_hand_over(setup, microseconds):
    machine = with_hand_over(setup.problem.hardware, microseconds)
    later = replace(setup, problem=replace(setup.problem, hardware=machine))
    assert_equal(later)
    if microseconds > 1_000:
        assert predict(later, exact=True, compiled=True).total_s > predict(setup, exact=True, compiled=True).total_s


REAL = [
    pytest.param("cgopipe", 36, 3, "mixtral-8x7b", "gcp-t4", id="cgopipe on S1"),
    pytest.param("flexgen", 8, 6, "mixtral-8x7b", "gcp-t4", id="flexgen on S1"),
    pytest.param("fastdecode", 16, 3, "mixtral-8x22b", "gcp-2xt4", id="two devices"),
    pytest.param("zero", 16, 1, "qwen3-30b-a3b", "rtx4090", id="many experts"),
    pytest.param("cgopipe", 8, 3, "deepseek-v2-lite", "rtx3090", id="a dense first layer"),
    pytest.param("flexgen-c", 8, 3, "gpt-oss-120b", "l40s", id="every other layer has a window"),
]


@pytest.mark.parametrize("padded", [True, False], ids=["padded", "unpadded"])
@pytest.mark.parametrize(("name", "size", "count", "model", "machine"), REAL)
def test_real_models_on_real_machines(name, size, count, model, machine, padded):
    workload = Workload.load("mtbench").with_(gen_len=24, padded=padded)
    problem, schedule = Problem(Model.load(model), Hardware.load(machine), workload), by_name(name)
    assert_equal(Setup(problem, schedule, Policy.usual(schedule, size * count, size)))


@pytest.mark.parametrize("name", ["cgopipe", "flexgen"])
def test_a_machine_whose_memories_are_all_exceeded(name):
    machine = round_machine(2, host_memory__bandwidth=6e9, device_memory__bandwidth=1e10, link__duplex=9e9)
    setup = made_setup(
        name, 4, 3, model=few_layers("mixtral-8x7b", 6), machine=machine, workload=Workload.fixed(50, 30)
    )
    assert_equal(setup)
    free = replace(setup, problem=replace(setup.problem, hardware=round_machine(2)))
    slowed, alone = (predict(one, compiled=True).total_s for one in (setup, free))
    assert slowed > 1.2 * alone


def test_policies_of_one_shape_share_their_arrays_and_not_their_costs():
    small, large = (made_setup("cgopipe", size, 3, workload=Workload.fixed(100, 30)) for size in (4, 64))
    assert small.shape == large.shape
    alone = predict(large, compiled=True).total_s
    assert predict(small, compiled=True).total_s < alone
    assert predict(large, compiled=True).total_s == alone == predict(large).total_s


def test_a_custom_schedule_runs_on_the_fast_path():
    setup = made_setup("cgopipe", model=few_layers("mixtral-8x7b", 8), workload=Workload.fixed(50, 24))
    for schedule in (Backwards(), MoreStaging()):
        assert_equal(replace(setup, schedule=schedule))


def test_what_is_stuck_says_so(monkeypatch):
    setup = made_setup(model=preset("mixtral-8x7b"))
    monkeypatch.setattr("sim.simulation.compiled.path.run_events", lambda *_: (None, 3))
    with pytest.raises(DeadlockError, match="3 tasks never ended"):
        predict(setup, compiled=True)


def test_importing_predictions_does_not_import_numba():
    code = "import sys; from sim.simulation import predict; assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(not jit.COMPILES, reason="numba is not installed: there is nothing to compile")
def test_it_says_whether_it_has_yet_to_compile(tmp_path):
    """A new process with nothing kept has to; then it is done; and the next process finds it kept."""
    code = (
        "from sim.simulation import is_compiled, warm_up; before = is_compiled(); warm_up(); "
        "print(before, is_compiled())"
    )
    told = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split()
        for _ in range(2)
    ]
    assert told == [["False", "True"], ["True", "True"]]


def test_what_cannot_be_kept_is_compiled_all_the_same():
    """A function without a file has no place for a cache, as one in a folder that nobody may write to."""
    made = {}
    exec("def double(x):\n    return 2 * x", made)
    assert jit.jitted(made["double"])(4) == 8
