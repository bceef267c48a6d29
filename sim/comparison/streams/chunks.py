"""Prompts beside decode: in chunks of a given size or the best of a few, or with a policy that is searched for them."""

from bisect import bisect_left
from dataclasses import dataclass, field

from sim.admission import BLOCK_TOKENS, RequestStream, Service
from sim.cost import Setup
from sim.planning import Flow, best_stream_policy
from sim.problem import Policy, Problem, WeightBits
from sim.schedule import Schedule
from sim.simulation import StreamResult, StreamSetup, serve_stream
from traces.errors import InputError

CHUNKS = tuple(2**power for power in range(8, 14))
"""Tokens of a chunk that are tried. Fewer make little of the weights that come over the link for them."""


@dataclass(frozen=True, slots=True)
class Chunked:
    """Requests whose prompts were computed beside decode, the setup that did so, and what was chosen, in words."""

    setup: StreamSetup
    result: StreamResult
    choice: str = ""


def serve_beside(setup: Setup, stream: RequestStream, service: Service) -> Chunked:
    """The requests served under a policy with their prompts beside decode, in chunks of a given or of the best size.

    Raises InputError where the schedule cannot do so, where memory is short, and for a request that is too long.
    """
    tries = _Tries(setup, stream, service)
    if service.prefill_chunk is not None:
        return tries.serve(service.prefill_chunk)
    at = min(bisect_left(CHUNKS, balanced_chunk(setup.policy, stream, service.num_prompts or 1)), len(CHUNKS) - 1)
    while at and tries.rate(at) is None:
        at -= 1
    best = CHUNKS[_climb(tries, at)]
    tried = ", ".join(f"{chunk:,}" for chunk in sorted(tries.served))
    found = tries.serve(best)
    return Chunked(found.setup, found.result, f"prompts in chunks of {best:,} tokens, the best of {tried}")


def serve_by_best(
    problem: Problem, schedule: Schedule, stream: RequestStream, service: Service, weight_bits: WeightBits | None
) -> Chunked:
    """The same with the policy that the planner finds best for prompts beside decode; what is given is kept.

    Raises InputError where no policy fits, and for a request that is too long.
    """
    given = {name: getattr(service, name) for name in ("num_prompts", "prefill_chunk", "block_tokens")}
    plan = best_stream_policy(problem, schedule, Flow.of(stream), weight_bits=weight_bits, **given)
    if not plan.found:
        raise InputError(plan.reason)
    setup = plan.ranked[0].setup
    result = serve_stream(setup, stream, service.priority, preempts=service.preempts)
    chosen = f"a policy of its own for prompts beside decode, the best of {plan.considered:,} that were looked at"
    return Chunked(setup, result, chosen)


def balanced_chunk(policy: Policy, stream: RequestStream, num_prompts: int = 1) -> float:
    """Tokens of a chunk with which as many prompts end, step by step, as requests do: places stay taken, none waits."""
    return policy.batch_size * stream.prompt_tokens / stream.generated_tokens / num_prompts


def _climb(tries: "_Tries", at: int) -> int:
    """From one size to larger ones as long as these are better, then to smaller ones."""
    for step in (1, -1):
        while 0 <= at + step < len(CHUNKS) and (tries.rate(at + step) or 0.0) > (tries.rate(at) or 0.0):
            at += step
    return at


@dataclass(slots=True)
class _Tries:
    """The stream served with chunks of one size after the other, each once."""

    setup: Setup
    stream: RequestStream
    service: Service
    served: dict[int, Chunked] = field(default_factory=dict)

    def serve(self, chunk: int) -> Chunked:
        """With chunks of so many tokens."""
        if chunk not in self.served:
            asked, setup = self.service, self.setup
            blocks = asked.block_tokens or BLOCK_TOKENS
            fixed = StreamSetup(setup.problem, setup.schedule, setup.policy, chunk, asked.num_prompts or 1, blocks)
            result = serve_stream(fixed, self.stream, asked.priority, preempts=asked.preempts)
            self.served[chunk] = Chunked(fixed, result)
        return self.served[chunk]

    def rate(self, at: int) -> float | None:
        """Tokens a second with one of `CHUNKS`; None where it does not fit. The smallest one must: it raises."""
        try:
            return self.serve(CHUNKS[at]).result.throughput_tokens_per_s
        except InputError:
            if at == 0:
                raise
            return None
