"""Short runs of the engine whose tasks are the measurements that rates are fitted to.

Most runs have one micro-batch and all experts on the device, so that nothing runs beside the task that is measured:
over several micro-batch sizes and prompt lengths they show how each op grows with tokens, requests and context. Some
have experts computed apart from their layers, on the device and on the host in turn. The others stream weights and KV
cache, and show the copies, and what CPU attention and the weight stream cost each other.
"""

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

import torch
from transformers import PreTrainedModel

from engine.device import Device
from engine.generation import run
from sim.cost import GROWS_WITH_CONTEXT, CostModel, Sizes
from sim.problem import Batch, Hardware, MicroBatch, Model, Policy
from sim.schedule import Lane, LaneKind, Op, PipelineShape, Place, Schedule, Task, by_name
from traces.trace import Span

T = TypeVar("T")

STEPS = 5
"""Tokens generated in each run: four decode steps."""

MAX_TOKENS = 1024
"""Prompt tokens of the largest run."""

SIZES = (1, 4, 16, 64)
PROMPTS = (8, 64, 256)
QUICK_SIZES = (1, 16)
QUICK_PROMPTS = (8, 64)
UNSETTLED_LAYERS = 2
LEFT_OUT = 20
"""One of so many of the slowest and of the fastest tasks is left out of a mean."""
STREAMED_SIZE = 16
STREAMED_MICRO_BATCHES = 3
BUSY_MICRO_BATCHES = 8
"""So many keep the device busy all the time while weights stream, where a few would wait for the weights."""


class Attempt(Protocol):
    """Makes something by calling `make`, as often as it takes; returns what the last call made."""

    def __call__(self, make: Callable[[], T]) -> T: ...


def once(make: Callable[[], T]) -> T:
    """The simplest `Attempt`."""
    return make()


@dataclass(frozen=True, slots=True)
class Condition:
    """One short run: a schedule, a policy, and micro-batches of equal prompts."""

    schedule: Schedule
    policy: Policy
    prompt_tokens: int
    alone: bool
    """Whether each task ran with nothing beside it."""

    @property
    def batch(self) -> Batch:
        """What the simulator is told of it."""
        one = MicroBatch.padded([self.prompt_tokens] * self.policy.micro_batch_size)
        return Batch((one,) * self.policy.num_micro_batches, 0, STEPS)

    @property
    def size(self) -> tuple[int, int]:
        """Requests of a micro-batch, and tokens of each prompt."""
        return self.policy.micro_batch_size, self.prompt_tokens

    def of_size(self, requests: int, prompt_tokens: int) -> "Condition":
        """The same with so many requests in each micro-batch, and prompts of another length."""
        together = requests * self.policy.num_micro_batches
        policy = replace(self.policy, batch_size=together, micro_batch_size=requests)
        return replace(self, policy=policy, prompt_tokens=prompt_tokens)

    def __str__(self) -> str:
        policy = self.policy
        return f"{self.schedule.name} {policy}, {self.prompt_tokens} prompt tokens, attention on the {policy.attention}"

    def shape(self, model: Model) -> PipelineShape:
        return self.policy.shape(self.schedule, model)

    def sizes(self, model: Model, hardware: Hardware) -> Sizes:
        """How much its tasks work on."""
        return Sizes(self.schedule, self.shape(model), self.policy, model, self.batch, hardware)

    def costs(self, model: Model, hardware: Hardware) -> CostModel:
        """The cost model of this run on a machine."""
        return CostModel(self.sizes(model, hardware))

    def steps(self, model: Model) -> Iterator[list[Task]]:
        """The tasks of this run."""
        return self.schedule.steps(self.shape(model), 0, STEPS)


class MeasuredRun(NamedTuple):
    """A condition and the spans of its tasks."""

    condition: Condition
    spans: Sequence[Span]


class Sample(NamedTuple):
    """A task and what it took, over all tasks of a condition that are alike."""

    condition: Condition
    task: Task
    mean_s: float
    """Without the slowest and the fastest twentieth. A run takes the sum of its tasks, so slow moments count."""
    num_tasks: int

    @property
    def tokens(self) -> int:
        """What the task worked on."""
        requests, width = self.condition.size
        return requests if self.task.step else requests * width


def conditions(max_prompt_tokens: int, *, quick: bool = False, apart: bool = True) -> list[Condition]:
    """The runs of a calibration, the small ones first; no prompt is longer than `max_prompt_tokens`.

    `apart`: whether experts can be computed apart from their layers.
    """
    sizes, prompts = (QUICK_SIZES, QUICK_PROMPTS) if quick else (SIZES, PROMPTS)
    widths = sorted({min(width, max_prompt_tokens) for width in prompts})
    cut = [(size, width) for width in widths for size in sizes if size * width <= MAX_TOKENS]
    found = [_alone(size, width, place) for size, width in cut for place in Place]
    found += [_apart(size, widths[0]) for size in sizes if apart]
    found.sort(key=lambda one: one.batch.prompt_tokens)
    width = min(64, max_prompt_tokens)
    names = ("cgopipe",) if quick else ("cgopipe", "flexgen")
    busy = _streaming("cgopipe", min(QUICK_PROMPTS[0], max_prompt_tokens), BUSY_MICRO_BATCHES)
    return [*found, *(_streaming(name, width) for name in names), busy]


def _alone(size: int, width: int, place: Place) -> Condition:
    schedule, kv_on_device = by_name("cgopipe"), float(place is Place.GPU)
    policy = Policy.usual(schedule, size, size, attention=place, experts_on_device=1.0, kv_on_device=kv_on_device)
    return Condition(schedule, policy, width, alone=True)


def _apart(size: int, width: int) -> Condition:
    """Experts computed apart from their layers, those of half of these on the host, while all else waits."""
    schedule = by_name("n-cpu-moe")
    policy = Policy.usual(schedule, size, size, experts_on_device=0.5, prefill_experts=Place.CPU)
    return Condition(schedule, policy, width, alone=True)


def _streaming(name: str, width: int, micro_batches: int = STREAMED_MICRO_BATCHES) -> Condition:
    policy = Policy.usual(by_name(name), micro_batches * STREAMED_SIZE, STREAMED_SIZE)
    return Condition(by_name(name), policy, width, alone=False)


def run_all(
    model: PreTrainedModel,
    device: Device,
    planned: Sequence[Condition],
    on_run: Callable[[Condition], None] = lambda condition: None,
    attempt: Attempt = once,
) -> list[list[Span]]:
    """Run every condition once, after a run that warms up; the spans of each. `attempt` may make a run again."""
    run_one(model, device, planned[0])
    found: list[list[Span]] = []
    for condition in planned:
        on_run(condition)
        found.append(attempt(partial(run_one, model, device, condition)))
    return found


def samples_of(runs: Iterable[MeasuredRun]) -> list[Sample]:
    """The samples of runs; those of one condition count together."""
    together: dict[Condition, list[Span]] = {}
    for condition, spans in runs:
        together.setdefault(condition, []).extend(spans)
    return [one for condition, spans in together.items() for one in _samples(condition, spans)]


def run_one(model: PreTrainedModel, device: Device, condition: Condition) -> list[Span]:
    """Execute one condition; its spans."""
    generator = torch.Generator().manual_seed(condition.prompt_tokens)
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    shape = (condition.policy.batch_size, condition.prompt_tokens)
    prompts = torch.randint(0, vocabulary, shape, generator=generator).tolist()
    schedule, policy = condition.schedule, condition.policy
    return run(
        model, prompts, schedule, policy, max_new_tokens=STEPS, device=device, min_new_tokens=STEPS, do_sample=False
    ).trace.spans


def _samples(condition: Condition, spans: Iterable[Span]) -> Iterator[Sample]:
    """Means over layers, micro-batches and, where an op does not grow with the context, steps.

    The first two layers of prefill are left out where there are others: the first pays for what is touched for the
    first time, and in both the memory that tasks work with is measured (`activations`), which slows them down.
    """
    spans = list(spans)
    on_host = {span.layer for span in spans if span.op == Op.HOST_EXPERTS}
    alike: dict[tuple[str, int, int, bool, bool], list[Span]] = {}
    for span in spans:
        when = span.step if Op(span.op) in GROWS_WITH_CONTEXT else min(span.step, 1)
        only_shared = span.op == Op.DEVICE_EXPERTS and span.layer in on_host
        alike.setdefault((span.op, when, span.page, span.lane == "CPU", only_shared), []).append(span)
    for group in alike.values():
        settled = [span for span in group if span.step or not 0 <= span.layer < UNSETTLED_LAYERS] or group
        one = settled[-1]
        lane = Lane(LaneKind(one.lane), one.rank)
        task = Task(0, Op(one.op), lane, one.step, one.layer, one.micro_batch, one.page)
        yield Sample(condition, task, _mean_s(settled), len(settled))


def _mean_s(spans: Sequence[Span]) -> float:
    took = sorted(span.duration_ns for span in spans)
    left_out = len(took) // LEFT_OUT
    return statistics.fmean(took[left_out : len(took) - left_out]) / 1e9
