"""The policy of the paper's own search as a plan, simulated as all others are."""

from sim.cost import Setup
from sim.hrm import SCHEDULE, search_policies
from sim.planning.bounds import least_seconds
from sim.planning.candidates import candidates_of
from sim.planning.grid import PolicyGrid
from sim.planning.planner import Choice, Plan
from sim.planning.search import Candidate, Objective
from sim.problem import Problem
from sim.schedule import by_name
from sim.simulation import predict


def hrm_setup(problem: Problem) -> tuple[Setup, int]:
    """What the search chooses, and of how many policies. Whether it fits our memory plan is not looked at."""
    found = search_policies(problem.model, problem.hardware, problem.workload)
    return Setup(problem, by_name(SCHEDULE), found.policy), found.candidates


def hrm_plan(problem: Problem) -> Choice:
    """The choice, simulated. Raises InputError if HRM finds none, or if what it finds does not fit our memory plan."""
    setup, candidates = hrm_setup(problem)
    best = Candidate(predict(setup, compiled=True), _bound(setup))
    return Choice(problem, Objective.THROUGHPUT, {SCHEDULE: Plan((best,), candidates, candidates, 0)}, {})


def _bound(setup: Setup) -> float:
    """The least of what candidates of the same shape and memory may take; a policy off the grid has none."""
    policy, total = setup.policy, setup.problem.model.num_experts
    grid = PolicyGrid((policy.micro_batch_size,), (policy.num_micro_batches,), pages=(1.0,), expert_values=total + 1)
    found = candidates_of(setup.problem, setup.schedule, grid)
    rows = [(found.setup(row), bound_s) for row, bound_s in enumerate(least_seconds(found)[0])]
    alike = [bound_s for one, bound_s in rows if (one.shape, one.memory) == (setup.shape, setup.memory)]
    return float(setup.batch.generated_tokens / min(alike)) if alike else float("inf")
