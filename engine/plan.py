"""Chooses a policy with the simulator, for a described machine and the requests at hand, and says what it expects."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from engine.calibration.calibrate import described
from sim.evaluate import Prediction, evaluate
from sim.grid import NUM_MICRO_BATCHES, best_on_grid
from sim.hardware import Hardware
from sim.policy import Policy
from sim.schedule.base import Schedule
from sim.setup import Problem, Setup
from sim.workload import Workload
from traces.errors import InputError


@dataclass(frozen=True, slots=True)
class Plan:
    """A policy and what the simulator expects of it."""

    policy: Policy
    expected: Prediction
    machine: str

    def __str__(self) -> str:
        policy, expected = self.policy, self.expected
        return (
            f"{policy} requests, experts_on_device {policy.experts_on_device:g}, kv_on_device {policy.kv_on_device:g}; "
            f"expected {expected.throughput_tokens_per_s:.1f} tokens/s, bottleneck {expected.bottleneck}"
        )


def plan(
    model: PreTrainedModel, hardware: Hardware, schedule: Schedule, prompt_tokens: Sequence[int], max_new_tokens: int
) -> Plan:
    """The best policy for these requests. Raises InputError if none fits the machine's memories."""
    workload = Workload("requests", tuple(prompt_tokens), max_new_tokens)
    problem = Problem(described(model), hardware, workload)
    setups = list(_candidates(problem, schedule, len(prompt_tokens)))
    if not setups:
        best_on_grid(problem, schedule)  # says which memory is too small
        raise InputError(f"no policy of {schedule.name} fits {len(prompt_tokens)} requests: give the sizes yourself")
    best = max(map(evaluate, setups), key=lambda expected: expected.throughput_tokens_per_s)
    return Plan(best.policy, best, hardware.name)


def _candidates(problem: Problem, schedule: Schedule, num_requests: int) -> Sequence[Setup]:
    """All requests in one batch, cut up in every way; else the best batch of any size that they fill."""
    counts = (1,) if schedule.one_batch else [count for count in NUM_MICRO_BATCHES if count <= num_requests]
    found = []
    for count in counts:
        size = -(-num_requests // count)
        try:
            found.append(best_on_grid(problem, schedule, size, -(-num_requests // size)).setup)
        except InputError:
            continue  # does not fit
    if found:
        return found
    try:
        any_size = best_on_grid(problem, schedule).setup
    except InputError:
        return []
    return [any_size] if any_size.policy.batch_size <= num_requests else []
