"""How long a stream takes, from a few simulated steps: requests come in, keep a steady number decoding, and go out."""

from dataclasses import dataclass

from sim.planning.streams.flow import Flow
from sim.planning.streams.points import StreamPoint
from sim.problem import MicroBatch
from sim.simulation import Behind, StepTimes, StreamSetup

NS = 1e-9


@dataclass(frozen=True, slots=True)
class StreamEstimate:
    """A setup, what it is expected to give a stream, and what it gives as long as requests come in as others end."""

    point: StreamPoint
    setup: StreamSetup
    throughput_tokens_per_s: float
    steady_tokens_per_s: float
    at_most_tokens_per_s: dict[str, float]
    """By lane, what a steady step would give if the lane never waited."""

    @property
    def bottleneck(self) -> str:
        """The lane that works most."""
        return min(self.at_most_tokens_per_s, key=lambda lane: self.at_most_tokens_per_s[lane])


def estimated(point: StreamPoint, setup: StreamSetup, flow: Flow) -> StreamEstimate:
    """Requests enter at one pace: their number rises until the first ones end, and falls behind the last to enter."""
    steps = _Steps(setup, flow)
    entering = steps.prompts / flow.prompt_tokens
    places, most = float(setup.policy.batch_size), float(flow.num_requests)
    ending = max(1.0, places - setup.num_prompts) / (flow.decode_steps + 1)  # who is at its prompt has a place, too
    entering = min(entering, most, ending if most > places else most)
    coming = most / entering
    rising = min(coming, flow.decode_steps)
    peak, between = entering * rising, abs(coming - flow.decode_steps)
    prompts_between = steps.prompts if coming >= flow.decode_steps else 0.0
    total_ns = (
        rising * steps.mean_ns(peak, steps.prompts)
        + between * steps.span_ns(peak, prompts_between)
        + rising * steps.mean_ns(peak, 0.0)
    )
    span_ns, use = steps.at(peak, steps.prompts)
    tokens = peak + entering
    bounds = {str(lane): tokens / (one.busy_ns * NS) for lane, one in use.lanes.items() if one.busy_ns}
    return StreamEstimate(point, setup, flow.generated_tokens / (total_ns * NS), tokens / (span_ns * NS), bounds)


class _Steps:
    """Steps in which so many requests decode beside so many tokens of prompts, each behind one like it."""

    def __init__(self, setup: StreamSetup, flow: Flow) -> None:
        self._setup, self._flow, self._times = setup, flow, StepTimes(setup)
        self.prompts = float(setup.prefill_chunk * setup.num_prompts)

    def mean_ns(self, peak: float, prompts: float) -> float:
        """Mean span while the number of those who decode goes evenly from none to a peak, or back."""
        low, middle, high = (self.span_ns(peak * share, prompts) for share in (0.0, 0.5, 1.0))
        return (low + 2 * middle + high) / 4

    def span_ns(self, decoding: float, prompts: float) -> float:
        """From the last token of the step before to its own."""
        return float(self.at(decoding, prompts)[0])

    def at(self, decoding: float, prompts: float) -> Behind:
        """Span and use of the lanes."""
        flow, setup = self._flow, self._setup
        n, count = setup.policy.num_micro_batches, max(round(decoding), 0 if prompts else 1)
        each = [count * (j + 1) // n - count * j // n for j in range(n)]
        decode = [MicroBatch(one, round(one * (flow.context_tokens - 1)), 0, 0) for one in each]
        tokens = round(prompts / setup.num_prompts)
        requests = max(1, round(tokens / flow.prompt_tokens)) if tokens else 0
        squares = round(tokens * flow.prompt_tokens_squared / flow.prompt_tokens)
        chunk = MicroBatch(requests, tokens, squares, tokens)
        earlier = round(flow.prompt_tokens / 2) if tokens else 0
        sizes = setup.sizes_of([chunk] * setup.num_prompts + decode, [earlier] * setup.num_prompts)
        return self._times.behind(sizes, sizes)
