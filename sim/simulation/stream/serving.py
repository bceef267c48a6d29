"""A stream served: admission says what a step carries, simulation how long it takes, and so on until all are done."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from sim.admission import Admission, AdmissionRules, Composition, Priority, RequestStream, StreamedRequest
from sim.simulation.energy import drawn_by
from sim.simulation.prediction import NS
from sim.simulation.stream.record import ServedStep
from sim.simulation.stream.results import RequestTimes, StreamResult, lane_summaries
from sim.simulation.stream.setup import StreamSetup
from sim.simulation.stream.steps import StepTimes


def serve_stream(
    setup: StreamSetup, stream: RequestStream, priority: Priority = Priority.ARRIVAL, *, preempts: bool = False
) -> StreamResult:
    """Every request of a stream from its arrival to its last token, in the room that the longest of them leaves.

    Raises InputError for one that is too long.
    """
    setup = setup.holding(stream)
    return StreamRun.of(setup, stream, setup.rules(priority, preempts=preempts)).result()


@dataclass(slots=True)
class StreamRun:
    """The clock, and what it has seen."""

    admission: Admission
    times: StepTimes
    coming: deque[StreamedRequest]
    now_ns: int = 0
    waited_ns: int = 0
    """How long nobody has been there."""
    before: Composition | None = None
    in_: dict[int, StreamedRequest] = field(default_factory=dict)
    since: dict[int, int] = field(default_factory=dict)
    """Of each request that decodes, the step that gave it its first token since it entered; it has one a step."""
    had: dict[int, int] = field(default_factory=dict)
    """Tokens that requests had before, if they were preempted."""
    due: dict[int, list[int]] = field(default_factory=dict)
    """By step, who has its last token in it unless it is preempted."""
    first_ns: dict[int, int] = field(default_factory=dict)
    done: list[RequestTimes] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)
    num_tokens: int = 0
    num_steps: int = 0
    num_preempted: int = 0
    held_ns: int = 0
    """Of each request that was in, the time that it was; of all places together."""
    steady_from: tuple[int, int] | None = None
    """When the first request ended, and how many tokens there were."""
    steady_to: tuple[int, int] | None = None
    """The same of the last step that began with requests waiting."""

    @classmethod
    def of(cls, setup: StreamSetup, stream: RequestStream, rules: AdmissionRules) -> "StreamRun":
        """A stream under rules that need not be the setup's own, such as those that an engine went by."""
        return cls(Admission(rules), StepTimes(setup), deque(stream.requests))

    def steps(self) -> Iterator[ServedStep]:
        """Those that are left, each when it has ended; its tokens are given."""
        while True:
            step = self._next()
            if step.composition.is_empty:
                if not self.coming:
                    return
                self.waited_ns += self.coming[0].arrival_ns - self.now_ns
                self.now_ns = self.coming[0].arrival_ns
                self.before = None
            else:
                self.waited_ns = 0
                yield step

    def _next(self) -> ServedStep:
        """One step, if anybody is there to do something in it."""
        while self.coming and self.coming[0].arrival_ns <= self.now_ns:
            request = self.coming.popleft()
            self.in_[request.id] = request
            self.admission.arrive(request)
        composition = self.admission.step(self.ended)
        step = ServedStep(composition, self.now_ns, self.admission.num_waiting, self.waited_ns)
        self.ended = []
        if composition.is_empty:
            self.times.none_follows()
            return step
        span_ns = self.times.span_ns(self.before, composition)
        self.now_ns += span_ns
        self.held_ns += self.admission.num_running * span_ns
        self.before = composition
        self.num_steps += 1
        self.num_preempted += len(composition.preempted)
        self._give_tokens(composition)
        return step

    def _give_tokens(self, composition: Composition) -> None:
        step = composition.step
        for id_ in composition.preempted:
            if id_ in self.since:
                self.had[id_] = self._has(id_, step - 1)
                del self.since[id_]
        begun = [chunk.request for chunks in composition.prompts for chunk in chunks if chunk.is_last]
        for id_ in begun:
            self.since[id_] = step
            self.first_ns.setdefault(id_, self.now_ns)
            last = step + self.in_[id_].generated_tokens - self.had.get(id_, 0) - 1
            self.due.setdefault(last, []).append(id_)
        self.num_tokens += composition.num_decoding + len(begun)
        for id_ in self.due.pop(step, ()):
            request = self.in_[id_]
            if id_ in self.since and self._has(id_, step) == request.generated_tokens:
                self.ended.append(id_)
                times = (request.arrival_ns, self.first_ns[id_], self.now_ns)
                self.done.append(RequestTimes(id_, *times, request.generated_tokens))
                del self.in_[id_], self.since[id_]
        mark = (self.now_ns, self.num_tokens)
        if self.ended and self.steady_from is None:
            self.steady_from = mark
        if self.admission.num_waiting:
            self.steady_to = mark

    def _has(self, id_: int, step: int) -> int:
        """Tokens of a request that decodes when a step has ended."""
        return self.had.get(id_, 0) + step - self.since[id_] + 1

    def result(self) -> StreamResult:
        """What all of it gave, the steps that are left included."""
        for _ in self.steps():
            pass
        lanes = lane_summaries(self.times.lanes.values(), self.now_ns)
        done = tuple(sorted(self.done, key=lambda one: one.id))
        counts = self.num_steps, self.times.num_simulated, self.num_preempted
        occupancy = self.held_ns / (self.admission.rules.most_running * self.now_ns)
        hardware, tokens = self.times.hardware, sum(one.num_tokens for one in done)
        drawn = drawn_by(hardware, self.times.active_j, self.now_ns * NS, len(done), tokens)
        return StreamResult(done, lanes, self._steady(), *counts, occupancy, drawn)

    def _steady(self) -> float | None:
        if self.steady_from is None or self.steady_to is None or self.steady_to[0] <= self.steady_from[0]:
            return None
        (begin_ns, before), (end_ns, after) = self.steady_from, self.steady_to
        return (after - before) / ((end_ns - begin_ns) * NS)
