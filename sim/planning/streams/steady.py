"""A stream in its pace: how many decode at a time, what a step of it carries, and the least that its lanes work."""

from collections import Counter
from dataclasses import dataclass

from sim.cost import Sizes
from sim.planning.streams.flow import Flow
from sim.problem import MicroBatch
from sim.schedule import NONE, Barrier, Lane, Task
from sim.simulation import StreamSetup, WorkCosts

NS = 1e-9
STEP = 1
"""Any step: all are alike."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How requests come and go, in steps and requests a step."""

    entering: float
    """Requests that enter a step."""
    coming: float
    """Steps in which any do."""
    rising: float
    """Steps until the first ones end, or until all are in."""

    @staticmethod
    def of(setup: StreamSetup, flow: Flow) -> "Pace":
        """As many enter as chunks hold, or as end; who is at its prompt has a place, too."""
        places, most = float(setup.policy.batch_size), float(flow.num_requests)
        ending = max(1.0, places - setup.num_prompts) / (flow.decode_steps + 1)
        entering = min(prompts_a_step(setup) / flow.prompt_tokens, most, ending if most > places else most)
        coming = most / entering
        return Pace(entering, coming, min(coming, flow.decode_steps))

    @property
    def peak(self) -> float:
        """The most requests that decode at a time."""
        return self.entering * self.rising

    @property
    def tokens(self) -> float:
        """Tokens that a step gives then: one each, and the first ones of those whose prompts end."""
        return self.peak + self.entering


def prompts_a_step(setup: StreamSetup) -> float:
    """Tokens of prompts that a step takes at most."""
    return float(setup.prefill_chunk * setup.num_prompts)


def step_sizes(setup: StreamSetup, flow: Flow, decoding: float, prompts: float) -> Sizes:
    """A step in which so many requests decode beside so many tokens of prompts: what its formulas of cost ask for."""
    n, count = setup.policy.num_micro_batches, max(round(decoding), 0 if prompts else 1)
    each = [count * (j + 1) // n - count * j // n for j in range(n)]
    decode = [MicroBatch(one, round(one * (flow.context_tokens - 1)), 0, 0) for one in each]
    tokens = round(prompts / setup.num_prompts)
    requests = max(1, round(tokens / flow.prompt_tokens)) if tokens else 0
    squares = round(tokens * flow.prompt_tokens_squared / flow.prompt_tokens)
    chunk = MicroBatch(requests, tokens, squares, tokens)
    earlier = round(flow.prompt_tokens / 2) if tokens else 0
    return setup.sizes_of([chunk] * setup.num_prompts + decode, [earlier] * setup.num_prompts)


def most_tokens_per_s(setup: StreamSetup, flow: Flow) -> float:
    """What a steady step would give if its busiest lane never waited.

    Layers whose experts are placed alike count as one of them: tokens may use a little more or less of another's.
    """
    pace = Pace.of(setup, flow)
    sizes = step_sizes(setup, flow, pace.peak, prompts_a_step(setup))
    costs, kinds = WorkCosts(sizes), sizes.placement.kinds
    kept = [kinds.index(kind) for kind in range(len(sizes.placement.counts))]
    busy_ns = Counter[Lane]()
    for one in setup.schedule.decode(setup.shape.some_layers(kept), STEP, True):
        if isinstance(one, Barrier):
            continue
        layer = NONE if one.layer == NONE else kept[one.layer]
        times = 1 if layer == NONE else sizes.placement.counts[kinds[layer]]
        task = Task(0, one.op, one.lane, STEP, layer, one.micro_batch, one.page)
        busy_ns[one.lane] += times * costs(task).duration_ns
    return pace.tokens / (max(busy_ns.values()) * NS)
