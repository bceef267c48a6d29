"""Chooses a policy with the simulator, for a described machine and the requests at hand, and says what it expects."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedModel

from engine.calibration import described
from engine.generation import as_cut
from sim.cost import Setup
from sim.planning import PolicyGrid, best_policy
from sim.problem import UNIFORM, Hardware, Policy, Problem, Routing, Workload
from sim.schedule import Schedule
from sim.simulation import Prediction, predict

WHAT_THE_ENGINE_RUNS = PolicyGrid(kv_shares=(0.0, 1.0))
"""The planner's grid without what the engine refuses: a KV cache that is split between device and host."""


@dataclass(frozen=True, slots=True)
class RunPlan:
    """A policy and what the simulator expects of it on a machine."""

    policy: Policy
    expected: Prediction
    machine: str

    def __str__(self) -> str:
        policy, expected = self.policy, self.expected
        width = "" if policy.weight_bits is None else f", weight_bits {policy.weight_bits:g}"
        return (
            f"{policy} requests, attention {policy.attention}, experts_on_device {policy.experts_on_device:g}, "
            f"kv_on_device {policy.kv_on_device:g}{width}; expected {expected.throughput_tokens_per_s:.1f} tokens/s, "
            f"bottleneck {expected.bottleneck}"
        )


def plan(
    model: PreTrainedModel,
    hardware: Hardware,
    schedule: Schedule,
    prompt_tokens: Sequence[int],
    max_new_tokens: int,
    routing: str | Routing = UNIFORM,
    weight_bits: float | None = None,
    *,
    sampled: bool = False,
) -> RunPlan:
    """The best policy for these requests: all in one batch, or the best batch that they fill.

    It is found for the longest of them, so that every batch fits, whichever requests come together. With `sampled`
    tokens are drawn, or scores changed. Raises NothingFitsError, an InputError, if no policy fits the memories.
    """
    longest_first = tuple(sorted(prompt_tokens, reverse=True))
    workload = Workload("requests", longest_first, max_new_tokens, sampled=sampled, in_order=True)
    problem = Problem.of(described(model), hardware, workload, routing=routing)
    grid = replace(WHAT_THE_ENGINE_RUNS, weight_bits=weight_bits)
    found = best_policy(problem, schedule, num_requests=len(prompt_tokens), grid=grid, refine=False)
    return RunPlan(found.best.setup.policy, _expected(found.best.setup, prompt_tokens), hardware.name)


def _expected(setup: Setup, prompt_tokens: Sequence[int]) -> Prediction:
    """Of the first batch, as the engine will cut it."""
    policy, first = setup.policy, sorted(prompt_tokens[: setup.policy.batch_size], reverse=True)
    batch = as_cut(first, policy.micro_batch_size, setup.problem.workload.gen_len)
    return predict(Setup(setup.problem, setup.schedule, policy, batch))
