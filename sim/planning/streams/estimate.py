"""How long a stream takes, from a few simulated steps: requests come in, keep a steady number decoding, and go out."""

from dataclasses import dataclass

from sim.planning.streams.flow import Flow
from sim.planning.streams.points import StreamPoint
from sim.planning.streams.steady import NS, Pace, prompts_a_step, step_sizes
from sim.simulation import Behind, StepTimes, StreamSetup


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
    pace, prompts, steps = Pace.of(setup, flow), prompts_a_step(setup), _Steps(setup, flow)
    peak, between = pace.peak, pace.coming - flow.decode_steps
    total_ns = (
        pace.rising * steps.mean_ns(peak, prompts)
        + abs(between) * steps.span_ns(peak, prompts if between >= 0 else 0.0)
        + pace.rising * steps.mean_ns(peak, 0.0)
    )
    span_ns, use = steps.at(peak, prompts)
    bounds = {str(lane): pace.tokens / (one.busy_ns * NS) for lane, one in use.lanes.items() if one.busy_ns}
    return StreamEstimate(point, setup, flow.generated_tokens / (total_ns * NS), pace.tokens / (span_ns * NS), bounds)


class _Steps:
    """Steps in which so many requests decode beside so many tokens of prompts, each behind one like it."""

    def __init__(self, setup: StreamSetup, flow: Flow) -> None:
        self._setup, self._flow, self._times = setup, flow, StepTimes(setup)

    def mean_ns(self, peak: float, prompts: float) -> float:
        """Mean span while the number of those who decode goes evenly from none to a peak, or back."""
        low, middle, high = (self.span_ns(peak * share, prompts) for share in (0.0, 0.5, 1.0))
        return (low + 2 * middle + high) / 4

    def span_ns(self, decoding: float, prompts: float) -> float:
        """From the last token of the step before to its own."""
        return float(self.at(decoding, prompts)[0])

    def at(self, decoding: float, prompts: float) -> Behind:
        """Span and use of the lanes."""
        sizes = step_sizes(self._setup, self._flow, decoding, prompts)
        return self._times.behind(sizes, sizes)
