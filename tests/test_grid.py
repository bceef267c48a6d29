"""The policy that the grid picks, against every policy on it tried one by one."""

from dataclasses import replace
from functools import cache
from itertools import product

import pytest
from sim_examples import few_layers, preset, round_machine

from sim import grid
from sim.evaluate import evaluate
from sim.grid import best_on_grid
from sim.hardware import Hardware
from sim.policy import Policy
from sim.schedule.registry import by_name, registered
from sim.setup import Problem, Setup
from sim.workload import Workload
from traces.errors import InputError

ALL = sorted(registered())
SIZES, COUNTS = (1, 6, 60), (1, 3)
EXPERTS_BYTES = 8 * 2 * 3 * 4096 * 14336  # of a layer of Mixtral 8x7B


@pytest.fixture
def small_grid(monkeypatch):
    monkeypatch.setattr(grid, "MICRO_BATCH_SIZES", SIZES)
    monkeypatch.setattr(grid, "NUM_MICRO_BATCHES", COUNTS)


on_small_grid = pytest.mark.usefixtures("small_grid")


def problem_of(model="mixtral-8x7b", num_layers=6, window=None, workload=None, **machine):
    workload = workload or Workload.fixed(100, 12)
    return Problem(few_layers(model, num_layers, window), round_machine(**machine), workload)


ROOMY = {"device_memory__capacity": 60e9, "host_memory__capacity": 100e9}
TIGHT = {"device_memory__capacity": 9e9, "host_memory__capacity": 24e9, "pinned": 17e9}
SMALL_HOST = {"device_memory__capacity": 16e9, "host_memory__capacity": 14e9, "pinned": 14e9}
PROBLEMS = {
    "everything fits": problem_of(**ROOMY),
    "little fits": problem_of(**TIGHT),
    "the host cannot hold all experts": problem_of(**SMALL_HOST),
    "two devices": problem_of(num_devices=2, **TIGHT),
    "one layer": problem_of(num_layers=1, **ROOMY),
    "sliding windows": problem_of(window=64, **TIGHT),
    "a leading dense layer": problem_of("deepseek-v2-lite", 8, device_memory__capacity=4e9),
    "only prefill": problem_of(workload=Workload.fixed(100, 1), **TIGHT),
    "uneven prompts": problem_of(workload=Workload("uneven", (20, 300, 70), 12), **TIGHT),
    "slow attention on the host": problem_of(host__request_overhead=1e-3, **ROOMY),
}


@cache
def every_setup(title, name):
    """All policies of the grid that fit: with no expert on the device, and with as many as there is room for."""
    problem, schedule = PROBLEMS[title], by_name(name)
    total, found = problem.model.num_experts, []
    kv_shares = {"zero": (1.0,), "accelerate": (1.0,), "flexgen": (0.0, 1.0)}.get(name, (0.0,))
    pinned = (False, True) if name == "zero" else (False,)
    counts = (1,) if name in ("zero", "accelerate") else COUNTS
    for size, count, share, pin in product(SIZES, counts, kv_shares, pinned):
        setups = [
            Setup(
                problem,
                schedule,
                Policy.usual(
                    schedule, size * count, size, kv_on_device=share, pin_weights=pin, experts_on_device=n / total
                ),
            )
            for n in range(total + 1)
        ]
        room = [at for at, one in enumerate(setups) if not any(short.tier == "device" for short in one.shortages)]
        found.extend(setups[at] for at in {0, max(room, default=0)} if not setups[at].shortages)
    return found


def estimated_rate(setup):
    return setup.batch.generated_tokens / grid._estimate_s(setup)


@on_small_grid
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("title", PROBLEMS)
def test_no_policy_on_the_grid_is_estimated_to_be_better(title, name):
    setups = every_setup(title, name)
    assert setups
    chosen = best_on_grid(PROBLEMS[title], by_name(name))
    assert chosen.setup.shortages == []
    assert chosen.num_feasible == len(setups)
    assert chosen.num_estimated <= chosen.num_feasible
    assert estimated_rate(chosen.setup) == pytest.approx(max(map(estimated_rate, setups)), rel=1e-9)
    assert chosen.setup.policy in [one.policy for one in setups]


@on_small_grid
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("title", ["little fits", "the host cannot hold all experts", "uneven prompts"])
def test_no_policy_on_the_grid_is_much_better_when_simulated(title, name):
    best = max(evaluate(one).throughput_tokens_per_s for one in every_setup(title, name))
    chosen = evaluate(best_on_grid(PROBLEMS[title], by_name(name)).setup)
    assert chosen.throughput_tokens_per_s >= 0.97 * best


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("title", [title for title in PROBLEMS if title != "only prefill"])
def test_the_bound_is_a_bound(title, name):
    """So a candidate that is skipped for its bound could not have won."""
    for at, setup in enumerate(every_setup(title, name)):
        bound_s = grid._bounded(setup).bound_s
        assert bound_s <= grid._estimate_s(setup) * 1.005
        if at % 4 == 0:
            assert bound_s <= evaluate(setup).total_s * 1.001


@pytest.mark.parametrize(
    ("machine", "model"),
    [
        ("gcp-t4", "mixtral-8x7b"),
        ("rtx4090", "qwen3-30b-a3b"),
        ("rtx3090", "gpt-oss-20b"),
        ("rtx3090", "deepseek-v2-lite"),
    ],
)
@pytest.mark.parametrize("name", ALL)
def test_the_estimate_is_near_the_simulation_of_real_models(machine, model, name):
    problem = Problem(preset(model), Hardware.load(machine), Workload.load("mtbench").with_(gen_len=8))
    schedule = by_name(name)
    for size, count in ((4, 3), (100, 2)) if not schedule.one_batch else ((4, 1), (48, 1)):
        setup = Setup(problem, schedule, Policy.usual(schedule, size * count, size))
        assert not setup.shortages
        assert grid._estimate_s(setup) == pytest.approx(evaluate(setup).total_s, rel=0.06)


def test_the_bound_is_tight_where_one_lane_does_all():
    for name in ("zero", "accelerate"):
        setup = Setup(problem_of(num_layers=32), by_name(name), Policy.usual(by_name(name), 1, 1))
        assert grid._bounded(setup).bound_s == pytest.approx(evaluate(setup).total_s, rel=0.02)


def test_the_estimate_leaves_out_what_only_the_first_and_the_last_layer_see():
    """The heads of a large vocabulary fall into the last layer, and let weights be fetched ahead for the first."""
    asked = Workload.load("mtbench").with_(gen_len=16)
    setup = Setup(
        Problem(preset("gpt-oss-20b"), Hardware.load("rtx3090"), asked), by_name("cgopipe"), Policy(1280, 160)
    )
    assert grid._estimate_s(setup) == pytest.approx(evaluate(setup).total_s, rel=0.04)


def test_the_estimate_extends_layers_with_experts_not_the_dense_ones_that_lead():
    model = preset("deepseek-v2-lite")
    model = replace(model, layers=(model.layers[0],) * 3 + model.layers[1:])
    problem = Problem(model, round_machine(), Workload.fixed(100, 8))
    for name in ("cgopipe", "flexgen", "accelerate"):
        setup = Setup(problem, by_name(name), Policy.usual(by_name(name), 8, 8))
        assert grid._estimate_s(setup) == pytest.approx(evaluate(setup).total_s, rel=0.15)


@on_small_grid
class TestExpertsOnTheDevice:
    def test_as_many_as_fit_and_whole(self):
        chosen = best_on_grid(PROBLEMS["little fits"], by_name("cgopipe")).setup
        model = PROBLEMS["little fits"].model
        resident = chosen.policy.resident_experts(model.layers[0])
        assert chosen.policy.experts_on_device == resident / 8
        if resident:
            more = replace(chosen, policy=replace(chosen.policy, experts_on_device=(resident + 1) / 8))
            assert any(short.tier == "device" for short in more.shortages)

    def test_all_of_them_where_the_device_holds_the_model(self):
        chosen = best_on_grid(PROBLEMS["everything fits"], by_name("cgopipe"), 6, 2).setup
        assert chosen.policy.experts_on_device == 1.0

    def test_they_make_room_on_a_host_that_cannot_hold_all(self):
        problem = PROBLEMS["the host cannot hold all experts"]
        assert problem.hardware.host_memory.capacity_bytes < 6 * EXPERTS_BYTES
        chosen = best_on_grid(problem, by_name("cgopipe"))
        assert chosen.setup.policy.experts_on_device > 0


@on_small_grid
class TestGivenSizes:
    @pytest.mark.parametrize("name", ["cgopipe", "flexgen"])
    def test_they_stay_fixed(self, name):
        problem, schedule = PROBLEMS["everything fits"], by_name(name)
        assert best_on_grid(problem, schedule, micro_batch_size=7).setup.policy.micro_batch_size == 7
        assert best_on_grid(problem, schedule, num_micro_batches=3).setup.policy.num_micro_batches == 3
        assert str(best_on_grid(problem, schedule, 7, 3).setup.policy) == "7×3"

    def test_a_schedule_of_one_batch_has_one_micro_batch_unless_told(self):
        problem = PROBLEMS["everything fits"]
        assert best_on_grid(problem, by_name("zero")).setup.policy.num_micro_batches == 1
        assert best_on_grid(problem, by_name("zero"), 6, 2).setup.policy.num_micro_batches == 2


@on_small_grid
class TestNothingFits:
    @pytest.mark.parametrize("name", ALL)
    def test_the_nearest_policy_is_named_with_the_memory_and_the_bytes_it_lacks(self, name):
        problem = problem_of(device_memory__capacity=3e9)
        schedule = by_name(name)
        with pytest.raises(InputError) as caught:
            best_on_grid(problem, schedule)
        message = str(caught.value)
        assert "\n" not in message
        assert "1×1" in message
        nearest = min(
            sum(short.short_bytes for short in Setup(problem, schedule, policy).shortages)
            for policy in (
                Policy.usual(schedule, size * count, size, **({"kv_on_device": 1.0} if share else {}))
                for size, count, share in product(SIZES, COUNTS, (False, True) if name == "flexgen" else (False,))
            )
        )
        assert f"device memory is {nearest:,} bytes short" in message

    def test_all_memories_that_are_too_small_are_named(self):
        problem = problem_of(device_memory__capacity=3e9, host_memory__capacity=10e9)
        with pytest.raises(InputError, match=r"host memory is .* bytes short .*; device memory is .* bytes short"):
            best_on_grid(problem, by_name("cgopipe"))

    def test_a_given_size_that_is_too_large_is_named(self):
        with pytest.raises(InputError, match=r"5000×1.* device memory is [\d,]+ bytes short"):
            best_on_grid(PROBLEMS["little fits"], by_name("cgopipe"), micro_batch_size=5000)


def test_on_the_papers_machine_the_grid_is_no_worse_than_the_published_policy():
    asked = Workload.load("mtbench").with_(gen_len=128, padded=True)
    problem, schedule = Problem(preset("mixtral-8x7b"), Hardware.load("gcp-t4"), asked), by_name("cgopipe")
    chosen = best_on_grid(problem, schedule).setup
    assert chosen.shortages == []
    assert estimated_rate(chosen) >= estimated_rate(Setup(problem, schedule, Policy(504, 36)))
