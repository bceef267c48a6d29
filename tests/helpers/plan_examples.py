"""Small problems for the planner, in which any lane, pool or memory may bind."""

from dataclasses import replace
from functools import cache

from hypothesis import strategies as st
from setup_examples import RATES, machines
from sim_examples import few_layers, round_machine

from sim.planning import PolicyGrid, best_policy
from sim.planning.bounds import least_joules_per_token, least_seconds
from sim.planning.search import at_best
from sim.problem import Hardware, Problem, Workload
from sim.simulation import predict

SMALL = PolicyGrid((1, 6, 40), (1, 3, 8), kv_shares=(0.0, 0.5, 1.0), pages=(0.0, 0.5, 1.0, 2.0), expert_values=3)
MODELS = ("mixtral-8x7b", "mixtral-8x7b", "qwen3-30b-a3b", "deepseek-v2-lite")

SLACK = 2e-3
"""What the simulator's own interpolation is good for, twice."""


def machine_of(num_devices=1, **changes):
    return round_machine(num_devices, **changes)


@st.composite
def problems(draw, most_gen_len=24, most_layers=6):
    """A few layers of a real model on the round machine, some of its rates and memories changed."""
    machine = draw(machines(RATES[:-1]))
    machine = machine.with_value("device_memory.capacity", draw(st.sampled_from([8e9, 16e9, 64e9])))
    machine = machine.with_value("host_memory.capacity", draw(st.sampled_from([16e9, 30e9, 1e12])))
    machine = machine.with_value("pinned", draw(st.sampled_from([2e9, 12e9, 500e9])))
    lengths, padded = draw(st.sampled_from([((40,), True), ((5, 60, 25, 90), False), ((10, 700), True)]))
    workload = Workload("any", lengths, draw(st.integers(1, most_gen_len)), padded=padded)
    window = draw(st.sampled_from([None, None, 50]))
    model = few_layers(draw(st.sampled_from(MODELS)), draw(st.integers(2, most_layers)), window)
    return Problem(model, machine, workload)


@cache
def watts_of(machine):
    """What a preset's parts draw."""
    return Hardware.load(machine).power


def drawing(problem, machine="gcp-2xt4"):
    """The same problem on a machine whose parts draw what a preset's do."""
    return replace(problem, hardware=replace(problem.hardware, power=watts_of(machine)))


@st.composite
def drawing_problems(draw, **limits):
    """As `problems`, with the watts of a small card or a large one."""
    return drawing(draw(problems(**limits)), draw(st.sampled_from(["gcp-2xt4", "h100"])))


def simple_problem(gen_len=12, num_layers=6, num_devices=1, **machine):
    """Mixtral 8x7B with a few layers, prompts of 100 tokens."""
    model = few_layers("mixtral-8x7b", num_layers)
    return Problem(model, round_machine(num_devices, **machine), Workload.fixed(100, gen_len))


def planned(problem, schedule, **options):
    """The best policy of the small grid and no other."""
    return best_policy(problem, schedule, **{"grid": SMALL, "refine": False, **options})


def assert_nothing_is_thriftier(found, at):
    """Than its bound: of the candidates the one `at` so much of them, the first and the last."""
    joules = least_joules_per_token(found, at_best(found)[0])
    for row in {int(at * (len(found) - 1)), 0, len(found) - 1}:
        assert joules[row] <= predict(found.setup(row), compiled=True).energy.j_per_token * (1 + SLACK)


def assert_nothing_is_faster(found, at):
    """Than its bound: of the candidates the one `at` so much of them, the first and the last."""
    total_s, decode_s = least_seconds(found)
    for row in {int(at * (len(found) - 1)), 0, len(found) - 1}:
        result = predict(found.setup(row), compiled=True)
        assert total_s[row] <= result.total_s * (1 + SLACK)
        assert decode_s[row] <= result.decode_s * (1 + SLACK)
