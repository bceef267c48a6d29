"""From a trace's metadata back to the run: the tasks that its schedule issued, and a Setup that predicts them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Annotated, Any, Protocol, TypeVar

import msgspec

from sim.cost import Cost, Setup
from sim.problem import Batch, Hardware, MicroBatch, Model, Policy, Problem, Workload
from sim.schedule import Op, PipelineShape, Schedule, Task, by_name, over_ranks
from traces.errors import InputError
from traces.trace import Key, Span, Trace

T = TypeVar("T")

MEND = "a replay needs a trace of `python -m engine run --trace` or `python -m sim compare --trace` of this version"


class Costs(Protocol):
    """What tasks cost, and what they share."""

    @property
    def capacities(self) -> Sequence[int]: ...

    @property
    def hand_over_ns(self) -> int: ...

    def __call__(self, task: Task) -> Cost: ...


class Run(Protocol):
    """The run behind a trace, of one batch or of a stream."""

    @property
    def schedule(self) -> Schedule: ...

    @property
    def shape(self) -> PipelineShape: ...

    @property
    def num_requests(self) -> int: ...

    def steps(self) -> Iterator[list[Task]]: ...

    def stretches(self) -> Iterable[tuple[int, list[list[Task]]]]:
        """Steps that follow each other, and when the first of them could begin, in nanoseconds."""
        ...

    def tokens(self, spans: Iterable[Span]) -> tuple[int, int]:
        """Tokens that prompts gave, and the others."""
        ...

    def costs(self, trace: Trace, hardware: Hardware) -> Costs:
        """Raises InputError if the trace does not hold the model or the policy, or they make another pipeline."""
        ...


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a trace says of its run: the schedule, the pipeline, the batch, and which steps it holds.

    `stop` is the step behind the last one that was issued; the generation's last step is `batch.gen_len` - 1.
    """

    schedule: Schedule
    shape: PipelineShape
    batch: Batch
    stop: int
    num_ranks: int

    @property
    def num_requests(self) -> int:
        return self.batch.num_requests

    def steps(self) -> Iterator[list[Task]]:
        """The tasks as they were issued, one list a step."""
        return over_ranks(self.schedule.steps(self.shape, 0, self.stop, last=self.batch.gen_len - 1), self.num_ranks)

    def stretches(self) -> Iterable[tuple[int, list[list[Task]]]]:
        """All of it follows from the start."""
        return [(0, list(self.steps()))]

    def tokens(self, spans: Iterable[Span]) -> tuple[int, int]:
        """Tokens of prefill and of decode: one a request and head, also where it ended before its micro-batch."""
        heads = [span for span in spans if span.op == Op.HEAD and span.rank == 0]
        counts = [self.batch.copies * self.batch.micro_batches[span.micro_batch].num_requests for span in heads]
        first = sum(count for count, span in zip(counts, heads, strict=True) if span.step == 0)
        return first, sum(counts) - first

    def costs(self, trace: Trace, hardware: Hardware) -> Costs:
        """What its tasks cost on a machine."""
        return rebuild_setup(trace, self, hardware).costs(only_contended=True)


def recorded(trace: Trace) -> Recorded:
    """The run behind a trace. Raises InputError if the trace does not say enough of it, or says impossible things."""
    metadata, schedule, shape = trace.metadata, schedule_of(trace), shape_of(trace)
    batch = typed(metadata, "batch", _Batch)
    if len(batch.micro_batches) != shape.num_micro_batches:
        raise InputError(
            f"the trace's batch has {len(batch.micro_batches)} micro-batches and its shape {shape.num_micro_batches}: "
            f"they must agree; {MEND}"
        )
    issued = typed({"steps": [0, batch.gen_len], **metadata}, "steps", tuple[int, int])
    if not (issued[0] == 0 < issued[1] <= batch.gen_len):
        raise InputError(f"the trace's metadata.steps is {list(issued)}: give [0, n] with n up to {batch.gen_len}")
    stop = min(issued[1], 1 + max((span.step for span in trace.spans), default=0))
    ranks = 1 + max((span.rank for span in trace.spans), default=0)
    return Recorded(schedule, shape, Batch(batch.micro_batches, 0, batch.gen_len, batch.copies), stop, ranks)


def spans_by_key(trace: Trace, tasks: Mapping[Key, Task]) -> dict[Key, Span]:
    """The trace's spans by what they did. Raises InputError if one did what the schedule has no task for, or twice."""
    spans: dict[Key, Span] = {}
    for span in trace.spans:
        task = tasks.get(span.key)
        if task is None or (task.lane.kind.value, task.lane.rank) != (span.lane, span.rank):
            raise InputError(
                f"the trace has a span {span.op!r} (step {span.step}, layer {span.layer}, micro-batch "
                f"{span.micro_batch}) on lane {span.lane} that its schedule, {trace.metadata.get('schedule')!r}, "
                f"does not issue: was it made by another version of that schedule?"
            )
        if span.key in spans:
            raise InputError(f"the trace does task {span.key} twice: a run does each task once")
        spans[span.key] = span
    if not spans:
        raise InputError("the trace has no spans: there is nothing to replay")
    return spans


def hardware_of(trace: Trace) -> Hardware | None:
    """The machine that the metadata describes or names, if it is one that can be loaded."""
    described = trace.metadata.get("hardware")
    with suppress(InputError):
        if isinstance(described, Mapping):
            return Hardware.from_dict(described)
        return Hardware.load(described) if described in Hardware.presets() else None
    return None


def rebuild_setup(trace: Trace, run: Recorded, hardware: Hardware) -> Setup:
    """The setup of a trace's run on a machine. Raises InputError if the trace does not hold the model or the policy."""
    policy = policy_of(trace, run.schedule)
    lengths = [one.max_prompt_tokens for one in run.batch.micro_batches for _ in range(one.num_requests)]
    workload = Workload("the trace's requests", tuple(lengths), run.batch.gen_len)
    setup = Setup(Problem(model_of(trace), hardware, workload), run.schedule, policy, run.batch)
    many = hardware.num_devices != run.num_ranks * run.batch.copies and not run.schedule.system.divides_layers
    if many or setup.num_ranks != run.num_ranks:
        raise InputError(
            f"hardware {hardware.name} has {hardware.num_devices} devices and the trace is of "
            f"{run.num_ranks * run.batch.copies}: give a machine with as many"
        )
    check_shape(setup.shape, run.shape)
    return setup


def check_shape(made: PipelineShape, told: PipelineShape) -> None:
    """Raises InputError unless a trace's model and policy make the pipeline that its shape says."""
    for field in fields(PipelineShape):
        ours, theirs = getattr(made, field.name), getattr(told, field.name)
        if ours != theirs:
            raise InputError(
                f"the trace's model and policy make a pipeline with {field.name} = {ours}, but its shape says {theirs}"
            )


def schedule_of(trace: Trace) -> Schedule:
    """The schedule that a trace names."""
    return by_name(typed(trace.metadata, "schedule", str))


def shape_of(trace: Trace) -> PipelineShape:
    """The pipeline of a trace."""
    return typed(trace.metadata, "shape", PipelineShape)


def policy_of(trace: Trace, schedule: Schedule) -> Policy:
    """The policy of a trace."""
    return Policy.from_dict(typed(trace.metadata, "policy", dict), schedule)


def model_of(trace: Trace) -> Model:
    """The model of a trace: from its configuration, or a preset by its name. Raises InputError."""
    name, config = typed(trace.metadata, "model", str), trace.metadata.get("model_config")
    if isinstance(config, Mapping):
        return Model.of_config(config, name, "the trace's model_config")
    if name in Model.presets():
        return Model.load(name)
    raise InputError(f"the trace names the model {name!r}, which is no preset, and has no model_config; {MEND}")


class _Batch(msgspec.Struct):
    """What a trace says of its batch."""

    gen_len: Annotated[int, msgspec.Meta(ge=1)]
    copies: Annotated[int, msgspec.Meta(ge=1)]
    micro_batches: tuple[MicroBatch, ...]

    def __post_init__(self) -> None:
        for one in self.micro_batches:
            counts = (one.num_requests, one.prompt_tokens, one.prompt_tokens_squared, one.max_prompt_tokens)
            if min(counts) < 1 or one.padding_tokens < 0:
                raise ValueError(f"{one} has a number that is too small")


def typed(metadata: Mapping[str, Any], name: str, kind: type[T]) -> T:
    """What a trace says under a name. Raises InputError if it does not, or says something else."""
    if metadata.get(name) is None:
        raise InputError(f"the trace has no metadata.{name}; {MEND}")
    try:
        return msgspec.convert(metadata[name], kind)
    except msgspec.ValidationError as error:
        raise InputError(f"the trace's metadata.{name} cannot be used: {error}; {MEND}") from None
