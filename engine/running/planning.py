"""Chooses a policy with the simulator, for a described machine and the requests at hand, and says what it expects."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedModel

from engine.calibration import described
from engine.generation import as_cut, joins_of, most_held
from sim.admission import BLOCK_TOKENS, Joins, RequestStream, StreamedRequest
from sim.cost import Setup
from sim.planning import Flow, PolicyGrid, best_policy, best_stream_policy
from sim.problem import UNIFORM, Hardware, Policy, Problem, Routing, WeightBits, Workload, weight_bits_text
from sim.schedule import Schedule
from sim.simulation import Prediction, StreamSetup, predict
from traces.errors import InputError


@dataclass(frozen=True, slots=True)
class RunPlan:
    """A policy and what the simulator expects of it on a machine."""

    policy: Policy
    expected_tokens_per_s: float
    bottleneck: str
    machine: str

    def __str__(self) -> str:
        policy = self.policy
        width = "" if policy.weight_bits is None else f", weight_bits {weight_bits_text(policy.weight_bits)}"
        return (
            f"{policy} requests, attention {policy.attention}, experts_on_device {policy.experts_on_device:g}, "
            f"kv_on_device {policy.kv_on_device:g}{width}; expected {self.expected_tokens_per_s:.1f} tokens/s, "
            f"bottleneck {self.bottleneck}"
        )

    def beside(self, measured_tokens_per_s: float, origin: str) -> str:
        """What was expected beside what came, in words."""
        share = measured_tokens_per_s / self.expected_tokens_per_s
        expected = f"expected {self.expected_tokens_per_s:.1f} tokens/s on {self.machine}"
        return f"{expected}, measured {measured_tokens_per_s:.1f} on {origin} ({share:.2f} of it)\n"


def plan(
    model: PreTrainedModel,
    hardware: Hardware,
    schedule: Schedule,
    prompt_tokens: Sequence[int],
    max_new_tokens: int,
    routing: str | Routing = UNIFORM,
    weight_bits: WeightBits | None = None,
    *,
    sampled: bool = False,
) -> RunPlan:
    """The best policy for these requests: all in one batch, or the best batch that they fill.

    It is found for the longest of them, so that every batch fits, whichever requests come together. With `sampled`
    tokens are drawn, or scores changed. Raises NothingFitsError, an InputError, if no policy fits the memories.
    """
    problem = _problem(model, hardware, prompt_tokens, max_new_tokens, routing, sampled=sampled)
    grid = PolicyGrid(weight_bits=weight_bits)
    found = best_policy(problem, schedule, num_requests=len(prompt_tokens), grid=grid, refine=False)
    expected = _expected(found.best.setup, prompt_tokens)
    rate, bottleneck = expected.throughput_tokens_per_s, expected.bottleneck
    return RunPlan(found.best.setup.policy, rate, bottleneck, hardware.name)


def plan_streamed(
    model: PreTrainedModel,
    hardware: Hardware,
    schedule: Schedule,
    prompt_tokens: Sequence[int],
    limits: Sequence[int],
    routing: str | Routing = UNIFORM,
    weight_bits: WeightBits | None = None,
    *,
    sampled: bool = False,
) -> RunPlan:
    """The best policy for a stream of these requests, each with the most tokens that it may generate.

    The engine computes prompts whole, as many at a time as a micro-batch has places, and sets room apart for whoever
    may be in, each as long as it may become: the best of those policies that fit so. Raises InputError if none does.
    """
    problem = _problem(model, hardware, prompt_tokens, max(limits), routing, sampled=sampled)
    lengths, joins = list(zip(prompt_tokens, limits, strict=True)), joins_of(model)
    asked = tuple(StreamedRequest(at, prompt, most, most) for at, (prompt, most) in enumerate(lengths))
    stream = RequestStream("requests", asked)
    given = {"num_prompts": 1, "block_tokens": BLOCK_TOKENS, "weight_bits": weight_bits}
    found = best_stream_policy(problem, schedule, Flow.of(stream), **given)  # type: ignore[arg-type]
    for one in found.ranked:
        if not one.setup.policy.attention_on_device and _fits_as_run(one.setup, lengths, joins):
            return RunPlan(one.setup.policy, one.throughput_tokens_per_s, one.bottleneck, hardware.name)
    raise InputError(found.reason or f"{schedule.name}: no policy for a stream fits {hardware.name}: give sizes")


def _problem(
    model: PreTrainedModel,
    hardware: Hardware,
    prompt_tokens: Sequence[int],
    max_new_tokens: int,
    routing: str | Routing,
    *,
    sampled: bool,
) -> Problem:
    longest_first = tuple(sorted(prompt_tokens, reverse=True))
    workload = Workload("requests", longest_first, max_new_tokens, sampled=sampled, in_order=True)
    return Problem.of(described(model), hardware, workload, routing=routing)


def _fits_as_run(setup: StreamSetup, lengths: Sequence[tuple[int, int]], joins: Joins) -> bool:
    """Whether there is room for whole prompts of a micro-batch, and in all places for the longest of these requests."""
    longest, places = setup.problem.workload.max_prompt_tokens, setup.policy.batch_size
    try:
        whole = replace(setup, prefill_chunk=setup.policy.micro_batch_size * longest)
    except InputError:
        return False
    held = sum(map(whole.rules().blocks_of, most_held(lengths, places, joins)))
    return bool(held <= whole.num_blocks)


def _expected(setup: Setup, prompt_tokens: Sequence[int]) -> Prediction:
    """Of the first batch, as the engine will cut it."""
    policy, first = setup.policy, sorted(prompt_tokens[: setup.policy.batch_size], reverse=True)
    batch = as_cut(first, policy.micro_batch_size, setup.problem.workload.gen_len)
    return predict(Setup(setup.problem, setup.schedule, policy, batch))
