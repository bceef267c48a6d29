"""A stream at work in a thread of its own, and the iterator that hands out what it makes."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from engine.device import LaneContext
from engine.generation.session import open_session
from engine.generation.streaming.cohorts import FIRST, Cohorts
from engine.generation.streaming.wanted import RequestOutput, Wanted
from engine.generation.trace import History, describe_run, make_trace
from engine.lanes import Executor, Ran
from engine.memory import Activations, Buffers
from engine.tasks import BatchContext, DecodeAttention, RunContext, Session, TaskPerformer
from sim.admission import Composition
from sim.schedule import H2D, WHOLE, Lane, LaneKind, Op, SlotLayout, Task
from sim.simulation import Quantiles, RequestTimes
from traces.trace import Counter, Trace

ENDLESS = 1 << 40
"""Steps of a stream, as far as its schedule knows: it ends when nobody is left."""

STEPS_THAT_SHOW_ALL_LANES = 2

LOOK_UP_S = 0.1
"""How often who waits for an output looks up: the delay of Ctrl-C."""

REQUESTS = "requests"
"""The counter of who is in: `decoding`, `in prompts` and `waiting`, and how many `places` there are."""


@dataclass(frozen=True, slots=True)
class StreamStats:
    """What a stream did. `total_s` is from its first step to its end; peaks are by tier."""

    num_requests: int
    generated_tokens: int
    num_steps: int
    total_s: float
    peak_bytes: dict[str, int]
    times: tuple[RequestTimes, ...]
    """Of each request that came to its end: when it had its first token, and its last, from the first step on."""

    @property
    def tokens_per_s(self) -> float:
        return self.generated_tokens / self.total_s if self.total_s else 0.0

    @property
    def first_token_s(self) -> Quantiles:
        return Quantiles.of(one.first_token_s for one in self.times)

    @property
    def whole_s(self) -> Quantiles:
        return Quantiles.of(one.whole_s for one in self.times)

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON values; of the times, what so large a share of the requests does not exceed."""
        numbers = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "times"}
        times = {name: getattr(self, name)._asdict() for name in ("first_token_s", "whole_s") if self.times}
        return {**numbers, "tokens_per_s": self.tokens_per_s, **times}


@dataclass(slots=True, eq=False)
class Serving:
    """The run behind a stream. `at_end` closes what was opened for it."""

    run: RunContext
    requests: list[Wanted]
    put: Callable[[RequestOutput | BaseException | None], None]
    """Takes outputs, at the end the error if there is one, and None."""
    output_of: Callable[[Wanted], RequestOutput]
    at_end: contextlib.ExitStack
    keep_model: bool
    traced_steps: int
    stats: StreamStats | None = None
    trace: Trace | None = None
    _executor: Executor | None = None
    _cohorts: Cohorts | None = None
    _stopped: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _samples: list[Counter] = field(default_factory=list)
    _histories: Mapping[str, History] = field(default_factory=dict)
    _num_steps: int = 0

    def work(self) -> None:
        """All of it, in the calling thread."""
        try:
            with self.at_end:
                if self.requests:
                    self._serve()
        except BaseException as error:
            self.put(error)
        self.put(None)

    def stop(self) -> None:
        """Lets lanes end where they are. From any thread."""
        with self._lock:
            self._stopped = True
            if self._executor is not None:
                self._executor.stop()

    def cancel(self, request: Wanted) -> None:
        """Nobody wants a request any more. From any thread."""
        request.cancelled = True
        if self._cohorts is not None:
            self._cohorts.cancel(request.number)

    def _serve(self) -> None:
        run = self.run
        with open_session(run, self.keep_model) as session, contextlib.ExitStack() as at_end:
            run.device.reset_peak()
            layout = run.layout(run.policy.num_micro_batches)
            buffers = at_end.enter_context(contextlib.closing(Buffers(run.device)))
            activations = at_end.enter_context(contextlib.closing(Activations(run.device, None, run.anatomy.kinds)))
            cohorts = Cohorts(run, layout.shape, self.requests, activations, self._tell, self._began)
            attention = DecodeAttention(session.kernel)
            work = _Work(
                cohorts, TaskPerformer(BatchContext(session, layout, cohorts, attention, buffers, activations))
            )
            session.weights.begin_batch(layout)
            _load_first_layer(session, layout)
            self._execute(cohorts, layout, work)

    def _execute(self, cohorts: Cohorts, layout: SlotLayout, work: "_Work") -> None:
        run, schedule, shape = self.run, self.run.schedule, layout.shape
        start = list(schedule.steps(shape, FIRST, FIRST + STEPS_THAT_SHOW_ALL_LANES, last=ENDLESS))
        lanes = list(dict.fromkeys(task.lane for step in start for task in step))
        for memory in run.memories.values() if self.traced_steps else ():
            memory.start_history()
        steps = schedule.steps(shape, FIRST, ENDLESS)
        executor = Executor(run.device, steps, lanes, work, work.finished, work.leave, self._is_traced)
        cohorts.is_stopped = lambda: executor.is_stopped
        with self._lock:
            self._cohorts, self._executor = cohorts, executor
            if self._stopped:
                return
        for request in self.requests:
            if request.cancelled:
                cohorts.cancel(request.number)
        begun_ns = time.perf_counter_ns()
        cohorts.advance()
        ran = [] if cohorts.over else executor.run()
        self._note(ran, begun_ns, time.perf_counter_ns())

    def _tell(self, request: Wanted) -> None:
        self.put(self.output_of(request))

    def _is_traced(self, task: Task) -> bool:
        return task.step < FIRST + self.traced_steps

    def _began(self, composition: Composition, num_waiting: int) -> None:
        """A step has begun: counts who is in it, for as long as there is a trace."""
        self._num_steps += not composition.is_empty
        if composition.step < self.traced_steps:
            prompts = sum(map(len, composition.prompts))
            assert self.run.rules is not None
            values = {
                "decoding": composition.num_decoding,
                "in prompts": prompts,
                "waiting": num_waiting,
                "places": self.run.rules.most_running,
            }
            self._samples.append(Counter(REQUESTS, time.perf_counter_ns(), values))
        elif composition.step == self.traced_steps:
            self._end_histories()

    def _end_histories(self) -> None:
        if self.traced_steps and not self._histories:
            self._histories = {tier: memory.take_history() for tier, memory in self.run.memories.items()}

    def _note(self, ran: list[Ran], begun_ns: int, ended_ns: int) -> None:
        run = self.run
        times = tuple(
            RequestTimes(one.number, 0, one.first_token_ns - begun_ns, one.end_ns - begun_ns, len(one.tokens))
            for one in self.requests
            if one.is_over and not one.error
        )
        peaks = {tier: memory.usage.peak_bytes for tier, memory in run.memories.items()}
        made = sum(len(one.tokens) for one in self.requests)
        seconds = (ended_ns - begun_ns) / 1e9
        self.stats = StreamStats(len(self.requests), made, self._num_steps, seconds, peaks, times)
        if not ran:
            return
        self._end_histories()
        assert run.rules is not None
        metadata = {
            **describe_run(run, [one.ids for one in self.requests]),
            "device": run.device.facts,
            "stream": {"requests": len(self.requests), "rules": asdict(run.rules)},
            "streamed_bytes": [0 if layer is None else layer.decode_bytes for layer in run.streamed],
            "locked_bytes": run.locked_bytes,
        }
        self.trace = make_trace(ran, metadata, self._histories, self._samples)


class _Work:
    """Performs the tasks of a stream, and sees its steps end."""

    def __init__(self, cohorts: Cohorts, performer: TaskPerformer) -> None:
        self._cohorts, self._performer = cohorts, performer

    def __call__(self, lane: LaneContext, task: Task) -> int | None:
        moved: int | None = None
        try:
            moved = self._performer(lane, task)
        except Exception as error:
            if not self._cohorts.breaks(task, error):
                raise
        if task.op is Op.HEAD:
            self._cohorts.head_done()
        return moved

    def finished(self) -> bool:
        """Whether nobody is left."""
        return self._cohorts.over

    def leave(self, lane: Lane) -> None:
        """What a lane's thread does when it ends."""
        self._performer.leave(lane)


def _load_first_layer(session: Session, layout: SlotLayout) -> None:
    """What a step before the first one would have left: the weights that it begins with."""
    device, shape = session.run.device, layout.shape
    if not shape.streams(FIRST, shape.first_on_device):
        return
    task = Task(0, Op.LOAD_WEIGHTS_PAGEABLE, H2D, FIRST, shape.first_on_device, page=WHOLE)
    with device.open_lane(LaneKind.H2D) as lane:
        session.weights.load_pageable(lane, task)
        lane.mark().wait()
    device.synchronize()


class OutputStream:
    """Outputs of requests, each as it ends. Closing it early ends what still runs; used up, it is closed.

    `stats` and `trace` are there when all outputs have been taken; the trace, if one was asked for.
    """

    def __init__(self, make: Callable[[Callable[[RequestOutput | BaseException | None], None]], Serving]) -> None:
        """`make` is given where outputs go to."""
        self._outputs = queue.SimpleQueue[RequestOutput | BaseException | None]()
        self._serving = make(self._outputs.put)
        self._requests = {one.number: one for one in self._serving.requests}
        self._owner = threading.current_thread()
        self._thread = threading.Thread(target=self._serving.work, name="stream")
        self._thread.start()

    @property
    def stats(self) -> StreamStats | None:
        """What it did, once it has ended."""
        return self._serving.stats

    @property
    def trace(self) -> Trace | None:
        """Its first steps, once it has ended."""
        return self._serving.trace

    def cancel(self, number: int) -> None:
        """Nobody wants a request any more: it ends with what it has. One that has ended stays as it is."""
        request = self._requests.get(number)
        if request is not None:
            self._serving.cancel(request)

    def close(self) -> None:
        """Ends what still runs, and waits for it."""
        self._serving.stop()
        self._thread.join()

    def __iter__(self) -> Iterator[RequestOutput]:
        return self

    def __next__(self) -> RequestOutput:
        try:
            found = self._take()
        except BaseException:
            self.close()
            raise
        if isinstance(found, RequestOutput):
            return found
        self._thread.join()
        self._outputs.put(None)  # whoever asks again hears the same
        if found is not None:
            raise found
        raise StopIteration

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not hasattr(self, "_thread"):
            return  # it never began
        self._serving.stop()
        if threading.current_thread() is self._owner:  # a lane that collects garbage must not wait for itself
            self._thread.join()

    def _take(self) -> RequestOutput | BaseException | None:
        while True:  # Ctrl-C comes between two looks
            with contextlib.suppress(queue.Empty):
                return self._outputs.get(timeout=LOOK_UP_S)
