"""From a trace's metadata back to the run: the tasks that its schedule issued, and a Setup that predicts them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from sim.cost import Setup
from sim.problem import Batch, Hardware, MicroBatch, Model, Policy, Problem, Workload
from sim.schedule import PipelineShape, Place, Schedule, Task, by_name, over_ranks
from traces.errors import InputError
from traces.trace import Key, Span, Trace

MEND = "a replay needs a trace of `python -m engine run --trace` or `python -m sim compare --trace` of this version"


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

    def steps(self) -> Iterator[list[Task]]:
        """The tasks as they were issued, one list a step."""
        steps = self.schedule.steps(self.shape, 0, self.stop, last=self.batch.gen_len - 1)
        return over_ranks(steps, self.num_ranks)


def recorded(trace: Trace) -> Recorded:
    """The run behind a trace. Raises InputError if the trace does not say enough of it, or says impossible things."""
    metadata = trace.metadata
    schedule = by_name(_text(metadata, "schedule"))
    shape = _built(metadata, "shape", _shape)
    batch = _built(metadata, "batch", _batch)
    if len(batch.micro_batches) != shape.num_micro_batches:
        raise InputError(
            f"the trace's batch has {len(batch.micro_batches)} micro-batches and its shape {shape.num_micro_batches}: "
            f"they must agree; {MEND}"
        )
    last = max((span.step for span in trace.spans), default=0)
    stop = min(_issued_steps(metadata, batch.gen_len), last + 1)
    ranks = 1 + max((span.rank for span in trace.spans), default=0)
    return Recorded(schedule, shape, batch, stop, ranks)


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
    try:
        if isinstance(described, Mapping):
            return Hardware.from_dict(described)
        return Hardware.load(described) if described in Hardware.presets() else None
    except InputError:
        return None


def rebuild_setup(trace: Trace, run: Recorded, hardware: Hardware) -> Setup:
    """The setup of a trace's run on a machine. Raises InputError if the trace does not hold the model or the policy."""
    policy = Policy.from_dict(_table(trace.metadata, "policy"), run.schedule)
    lengths = [one.max_prompt_tokens for one in run.batch.micro_batches for _ in range(one.num_requests)]
    workload = Workload("the trace's requests", tuple(lengths), run.batch.gen_len)
    setup = Setup(Problem(model_of(trace), hardware, workload), run.schedule, policy, run.batch)
    if hardware.num_devices != run.num_ranks * run.batch.copies or setup.num_ranks != run.num_ranks:
        raise InputError(
            f"hardware {hardware.name} has {hardware.num_devices} devices and the trace is of "
            f"{run.num_ranks * run.batch.copies}: give a machine with as many"
        )
    for field in fields(PipelineShape):
        ours, theirs = getattr(setup.shape, field.name), getattr(run.shape, field.name)
        if ours != theirs:
            raise InputError(
                f"the trace's model and policy make a pipeline with {field.name} = {ours}, but its shape says {theirs}"
            )
    return setup


def model_of(trace: Trace) -> Model:
    """The model of a trace: from its configuration, or a preset by its name. Raises InputError."""
    name, config = _text(trace.metadata, "model"), trace.metadata.get("model_config")
    if isinstance(config, Mapping):
        from sim.problem import read_model

        return read_model(config, name, "the trace's model_config")
    if name in Model.presets():
        return Model.load(name)
    raise InputError(f"the trace names the model {name!r}, which is no preset, and has no model_config; {MEND}")


def _built(metadata: Mapping[str, Any], name: str, build: Callable[[Mapping[str, Any]], Any]) -> Any:
    table = _table(metadata, name)
    try:
        return build(table)
    except InputError as error:
        raise InputError(f"the trace's metadata.{name}: {error}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the trace's metadata.{name} cannot be read ({error!r}); {MEND}") from None


def _issued_steps(metadata: Mapping[str, Any], gen_len: int) -> int:
    """How many steps the trace holds: `steps` is [first, stop], and a replay begins with prefill."""
    match metadata.get("steps", [0, gen_len]):
        case [0, int(stop)] if 0 < stop <= gen_len:
            return stop
        case other:
            raise InputError(f"the trace's metadata.steps is {other!r}: a replay needs [0, n] with n up to {gen_len}")


def _shape(table: Mapping[str, Any]) -> PipelineShape:
    return PipelineShape(**{**table, "attention": Place(table["attention"]), "streamed": tuple(table["streamed"])})


def _batch(table: Mapping[str, Any]) -> Batch:
    micro_batches = [MicroBatch(**one) for one in table["micro_batches"]]
    for name in ("gen_len", "copies"):
        if type(table[name]) is not int or table[name] < 1:
            raise InputError(f"{name} is {table[name]!r}: a whole number of at least 1 is needed")
    for one in micro_batches:
        for field in fields(one):
            value = getattr(one, field.name)
            if type(value) is not int or value < (0 if field.name == "padding_tokens" else 1):
                raise InputError(f"a micro-batch has {field.name} = {value!r}: a whole number above 0 is needed")
    return Batch(tuple(micro_batches), 0, table["gen_len"], table["copies"])


def _table(metadata: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = metadata.get(name)
    if not isinstance(value, Mapping):
        what = "has no" if value is None else "has an unusable"
        raise InputError(f"the trace {what} metadata.{name}; {MEND}")
    return value


def _text(metadata: Mapping[str, Any], name: str) -> str:
    value = metadata.get(name)
    if not isinstance(value, str):
        raise InputError(f"the trace does not name its {name}; {MEND}")
    return value
