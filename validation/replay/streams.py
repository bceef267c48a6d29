"""The stream behind a trace: its tasks, what they cost, whether admission decides the same again, and how long it took.

Steps are those that the trace says there were; the prediction is of their times. Whether requests would have met in the
same steps had they gone by predicted times is another question, which a campaign asks.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from sim.admission import Admission, AdmissionRules, Composition
from sim.problem import Hardware, Problem, Workload
from sim.schedule import Op, PipelineShape, Schedule, Task
from sim.simulation import (
    RECORD,
    Quantiles,
    RequestTimes,
    ServedCosts,
    StreamRecord,
    StreamSetup,
    stream_tasks,
    stretches,
)
from traces.errors import InputError
from traces.trace import Span, Trace
from validation.metrics import relative_error
from validation.replay.rebuild import (
    TaskCosts,
    check_shape,
    recorded_model,
    recorded_policy,
    recorded_schedule,
    recorded_shape,
    typed,
)

COMPARED = ("p50", "p90")
OF_PREFILL = ("prefill_experts", "streamed_in_prefill")
"""What a pipeline says of a step that no stream has."""

MEASURES = {"TTFT": "first_token_s", "TPOT": "token_s", "E2E": "whole_s"}
"""What people call the times of a request, and their names here."""


@dataclass(frozen=True, slots=True)
class RecordedStream:
    """What a trace says of its stream."""

    schedule: Schedule
    shape: PipelineShape
    record: StreamRecord

    @classmethod
    def of(cls, trace: Trace) -> "RecordedStream":
        """Raises InputError if the trace does not say enough of it, or says impossible things."""
        record = typed(trace.metadata, RECORD, StreamRecord)
        shape, rules = recorded_shape(trace), record.rules
        sizes = (rules.num_prompts, rules.num_micro_batches)
        for number, step in enumerate(record.steps):
            told = (len(step.composition.prompts), len(step.composition.decoding))
            if told != sizes or sizes != (shape.num_prompts, shape.num_micro_batches - shape.num_prompts):
                raise InputError(
                    f"the trace's stream has {sizes[0]} micro-batches of prompts and {sizes[1]} others by its rules, "
                    f"and others in step {number} or in its shape: they must agree"
                )
        if not record.steps or not record.requests:
            raise InputError("the trace's stream has no step or no request: there is nothing to replay")
        return cls(recorded_schedule(trace), shape, record)

    @property
    def num_requests(self) -> int:
        return len(self.record.requests)

    @property
    def num_ranks(self) -> int:
        """A stream has one device."""
        return 1

    def steps(self) -> Iterator[list[Task]]:
        """The tasks as they were issued, one list a step."""
        return stream_tasks(self.schedule, self.shape, len(self.record.steps))

    def stretches(self) -> Iterable[tuple[int, list[list[Task]]]]:
        """Between them nobody was there."""
        return stretches(self.steps(), self.record.steps)

    def tokens(self, spans: Iterable[Span]) -> tuple[int, int]:
        """Those that prompts gave, and those of decode."""
        last = max((span.step for span in spans if span.op == Op.HEAD), default=0)
        carried = [step.composition for step in self.record.steps[:last]]
        decoded = sum(one.num_decoding for one in carried)
        return sum(len(one.gives_tokens_to) for one in carried) - decoded, decoded

    def setup(self, trace: Trace, hardware: Hardware) -> StreamSetup:
        """What predicts it on a machine. Raises InputError if the trace does not hold the model or the policy."""
        requests = [one.request for one in self.record.requests]
        prompts = tuple(one.prompt_tokens for one in requests)
        workload = Workload("the trace's requests", prompts, max(one.most_tokens for one in requests))
        policy = recorded_policy(trace, self.schedule)
        longest = max(one.prompt_tokens + one.most_tokens - 1 for one in requests)
        problem = Problem(recorded_model(trace), hardware, workload)
        return StreamSetup.under(problem, self.schedule, policy, self.record.rules, longest)

    def costs(self, trace: Trace, hardware: Hardware) -> TaskCosts:
        """What its tasks cost on a machine."""
        setup = self.setup(trace, hardware)
        check_shape(setup.shape, self.shape, OF_PREFILL)
        return ServedCosts(setup, self.record.steps)


@dataclass(frozen=True, slots=True)
class LatencyCheck:
    """How long so large a share of the requests had to wait at most, measured and predicted. Seconds."""

    measure: str
    quantile: str
    measured_s: float
    predicted_s: float
    error: float


@dataclass(frozen=True, slots=True)
class StreamCheck:
    """Decisions and latencies of a stream. `different` says which step carried something else by the rules, if any."""

    steps: int
    steps_alike: int
    different: str
    latencies: tuple[LatencyCheck, ...] = ()
    """None without a machine."""


def check_decisions(record: StreamRecord) -> StreamCheck:
    """What admission decides of the same requests, which come and end when they did, step by step."""
    admission, has = Admission(record.rules), dict[int, int]()
    requests = {one.request.id: one for one in record.requests}
    coming = sorted((one.request for one in record.requests), key=lambda one: (one.arrival_ns, one.id))
    before: Composition | None = None
    alike, different = 0, ""
    for number, step in enumerate(record.steps):
        while coming and (coming[0].arrival_ns <= step.begun_ns or coming[0].id in step.composition.entered):
            admission.arrive(coming.pop(0))
        ended = [
            id_
            for id_ in _who(before)
            if has.get(id_, 0) == requests[id_].request.generated_tokens
            or (requests[id_].error and id_ not in _who(step.composition))
        ]
        decided = admission.step(ended)
        if _carried(decided) == _carried(step.composition):
            alike += 1
        elif not different:
            different = f"step {number} carried {_words(step.composition)}, and by the rules {_words(decided)}"
            break  # from here on other requests are in
        for id_ in decided.gives_tokens_to:
            has[id_] = has.get(id_, 0) + 1
        before = decided
    return StreamCheck(len(record.steps), alike, different)


def latency_checks(measured: Sequence[RequestTimes], predicted: Sequence[RequestTimes]) -> tuple[LatencyCheck, ...]:
    """Of the same requests."""
    found = []
    for name, measure in MEASURES.items():
        both = [Quantiles.of(getattr(one, measure) for one in times)._asdict() for times in (measured, predicted)]
        for quantile in COMPARED:
            ours, theirs = both[1][quantile], both[0][quantile]
            found.append(LatencyCheck(name, quantile, theirs, ours, relative_error(ours, theirs) if theirs else 0.0))
    return tuple(found)


def times_in(trace: Trace, record: StreamRecord) -> list[RequestTimes]:
    """When requests had their tokens by a trace's heads, of those that ended in its steps."""
    ends_ns = {(span.step, span.micro_batch): span.end_ns for span in trace.spans if span.op == Op.HEAD}
    first_ns, last_ns, has = dict[int, int](), dict[int, int](), dict[int, int]()
    for number, step in enumerate(record.steps, 1):
        for id_, micro_batch in _tokens_of(step.composition, record.rules):
            if (end_ns := ends_ns.get((number, micro_batch))) is not None:
                first_ns.setdefault(id_, end_ns)
                last_ns[id_], has[id_] = end_ns, has.get(id_, 0) + 1
    return [
        RequestTimes(one.id, one.arrival_ns, first_ns[one.id], last_ns[one.id], one.generated_tokens)
        for one in (served.request for served in record.requests if not served.error)
        if has.get(one.id) == one.generated_tokens
    ]


def _tokens_of(composition: Composition, rules: AdmissionRules) -> Iterator[tuple[int, int]]:
    """Who has a token, and in which micro-batch."""
    for j, chunks in enumerate(composition.prompts):
        yield from ((chunk.request, j) for chunk in chunks if chunk.is_last)
    for j, mine in enumerate(composition.decoding, rules.num_prompts):
        yield from ((one.request, j) for one in mine)


def _who(composition: Composition | None) -> list[int]:
    """Everybody who is in."""
    if composition is None:
        return []
    begun = (chunk.request for chunks in composition.prompts for chunk in chunks)
    return [*(one.request for mine in composition.decoding for one in mine), *begun]


def _carried(composition: Composition) -> tuple[object, ...]:
    """What it comes to, in whatever order a micro-batch has its requests."""
    return composition.prompts, tuple(map(sorted, composition.decoding))


def _words(composition: Composition) -> str:
    prompts = [[chunk.request for chunk in chunks] for chunks in composition.prompts]
    return f"prompts of {prompts} and {composition.num_decoding} who decode"
