"""A schedule of another package with slots of its own is planned for, bounded and simulated like a built-in one."""

import pytest
from hypothesis import given, strategies as st
from own_slots import Picky, TwoAhead, installed  # noqa: F401
from plan_examples import planned, simple_problem
from program_tasks import as_told, told
from schedule_rules import Order, assert_no_race, assert_well_formed, examples
from sim_examples import made_setup

from sim.comparison.comparison import Asked, compare
from sim.schedule import Op, PipelineShape, Place, Task, by_name, layout_of
from sim.schedule.task import H2D
from sim.simulation import predict
from sim.simulation.compiled.program import program_of

pytestmark = pytest.mark.usefixtures("installed")


class PickyAhead(TwoAhead):
    """As `TwoAhead`, with a layout that cannot be asked about many layers at once."""

    def layout(self, shape):
        return Picky(shape, self.system)


@st.composite
def pipelines(draw):
    n = draw(st.integers(1, 4))
    layers = tuple(draw(st.lists(st.booleans(), min_size=2, max_size=12)))
    on_host = draw(st.booleans())
    return PipelineShape(len(layers), n, 1, Place.GPU, layers, streams_kv=on_host, offloads_hidden=n > 1)


@pytest.mark.parametrize("schedule", [TwoAhead(), PickyAhead()], ids=lambda schedule: type(schedule).__name__)
@examples(12)
@given(shape=pipelines(), last=st.integers(0, 5))
def test_both_paths_have_the_same_tasks_and_nothing_races(schedule, shape, last):
    tasks = list(schedule.tasks(shape, last + 1))
    assert_well_formed(tasks)
    assert_no_race(tasks, lambda task: layout_of(schedule, shape).accesses(task), Order(tasks))
    program = program_of(schedule, shape, 1, 0, last)
    found = [told(program, kind) for kind in program.kinds(0, last + 1, last)]
    assert found == as_told(schedule.steps(shape, 0, last + 1))


def test_weights_take_three_turns():
    shape = PipelineShape(4, 2, 1, Place.GPU, (True,) * 4)
    loads = [Task(0, Op.LOAD_WEIGHTS_PAGEABLE, H2D, 1, layer) for layer in range(4)]
    assert [layout_of(TwoAhead(), shape).slot_of("weights", load) for load in loads] == [1, 2, 0, 1]


def test_the_memory_plan_shows_its_buffers():
    two, three = (made_setup(name).memory.device for name in ("flexgen", "two-ahead"))
    assert 2 * three["weight slots"] == 3 * two["weight slots"]
    assert three["bounce"] == 8 * 103 * 4096, "a micro-batch's cache of one layer at its longest"
    same = {part: size for part, size in three.items() if part not in ("weight slots", "bounce")}
    assert same == {part: size for part, size in two.items() if part != "weight slots"}


@pytest.mark.parametrize("policy", [{}, {"kv_on_device": 0.5}, {"kv_on_device": 1.0}, {"pin_weights": True}], ids=str)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_simpy_and_the_fast_path_say_the_same(policy, count):
    setup = made_setup("two-ahead", 8, count, **policy)
    ours, theirs = predict(setup, compiled=True), predict(setup)
    assert (ours.prefill_s, ours.decode_s) == (theirs.prefill_s, theirs.decode_s)


def test_it_is_compared_by_name():
    flexgen, own = compare(simple_problem(), ("flexgen", "two-ahead"), Asked({}, 8, 2), jobs=1)
    assert own.prediction.throughput_tokens_per_s > flexgen.prediction.throughput_tokens_per_s


@pytest.mark.parametrize("capacity", [14e9, 64e9], ids=["some weights stream", "all fit"])
def test_its_plan_is_feasible_and_bounded(capacity):
    plan = planned(simple_problem(device_memory__capacity=capacity), by_name("two-ahead"))
    assert plan.best.throughput_tokens_per_s <= plan.best.bound_tokens_per_s * (1 + 1e-6)
    assert plan.best.setup.shortages == []
