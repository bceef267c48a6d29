"""A stream at work: the run behind it, from the model on its device to its last step."""

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from engine.device import EnergyMeter, LaneContext
from engine.generation.session import open_session
from engine.generation.streaming.cohorts import FIRST, Cohorts
from engine.generation.streaming.joined import Joined
from engine.generation.streaming.stats import StreamStats
from engine.generation.streaming.together import Together
from engine.generation.streaming.traced import in_steps, with_record
from engine.generation.streaming.wanted import RequestOutput, Wanted, most_held
from engine.generation.trace import History, describe_run, described_energy, make_trace
from engine.lanes import Executor, Ran
from engine.memory import Activations, Buffers, KVPools, blocks_of_all
from engine.tasks import BatchContext, DecodeAttention, HostRoom, RunContext, Session, TaskPerformer
from sim.admission import Joins, KvLayers
from sim.schedule import H2D, WHOLE, Lane, LaneKind, Op, PipelineShape, SlotLayout, Task
from sim.simulation import RequestTimes, ServedStep, describe_shape
from traces.trace import Trace

ENDLESS = 1 << 40
"""Steps of a stream, as far as its schedule knows: it ends when nobody is left."""

STEPS_THAT_SHOW_ALL_LANES = 2

STREAM = "stream"
"""The one phase of a stream whose energy is measured."""


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
    meter: EnergyMeter | None = None
    stats: StreamStats | None = None
    trace: Trace | None = None
    _executor: Executor | None = None
    _cohorts: Cohorts | None = None
    _stopped: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _steps: list[ServedStep] = field(default_factory=list)
    """Those of which there is a trace."""
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
            cohorts = self._cohorts_of(session, layout.shape, activations)
            attention = DecodeAttention(session.kernel)
            context = BatchContext(session, layout, cohorts, attention, buffers, activations)
            cohorts.take_memory(HostRoom(context).locks_caches)
            work = _Work(cohorts, TaskPerformer(context))
            session.weights.begin_batch(layout)
            _load_first_layer(session, layout)
            self._execute(cohorts, layout, work)

    def _cohorts_of(self, session: Session, shape: PipelineShape, activations: Activations) -> Cohorts:
        rules = self.run.rules
        assert rules is not None
        given = self.run, shape, self.requests, activations, self._tell, self._began
        if rules.joins is Joins.TOGETHER:
            return Together(*given)
        tokens = most_held([one.lengths for one in self.requests], rules.most_running, rules.joins)
        size, windows = rules.block_tokens, self.run.anatomy.windows
        blocks = {one.window: blocks_of_all([KvLayers(window=one.window)], tokens, size) for one in rules.layers}
        return Joined(*given, KVPools(blocks, session.host_blocks, windows, block_tokens=size))

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
        begun_ns = cohorts.begun_ns = time.perf_counter_ns()
        cohorts.advance()
        ran = [] if cohorts.over else executor.run()
        self._note(ran, begun_ns, time.perf_counter_ns())

    def _tell(self, request: Wanted) -> None:
        self.put(self.output_of(request))

    def _is_traced(self, task: Task) -> bool:
        return task.step < FIRST + self.traced_steps

    def _began(self, step: ServedStep) -> None:
        """A step has begun, which is kept for as long as there is a trace."""
        self._num_steps += not step.composition.is_empty
        if step.composition.is_empty or step.composition.step >= self.traced_steps:
            self._end_histories()
        else:
            self._steps.append(step)

    def _end_histories(self) -> None:
        if self.traced_steps and not self._histories:
            self._histories = {tier: memory.take_history() for tier, memory in self.run.memories.items()}

    def _note(self, ran: list[Ran], begun_ns: int, ended_ns: int) -> None:
        run = self.run
        times = tuple(
            RequestTimes(
                one.number, one.arrival_ns, one.first_token_ns - begun_ns, one.end_ns - begun_ns, len(one.tokens)
            )
            for one in self.requests
            if one.is_over and not one.error
        )
        peaks = {tier: memory.usage.peak_bytes for tier, memory in run.memories.items()}
        made = sum(len(one.tokens) for one in self.requests)
        seconds = (ended_ns - begun_ns) / 1e9
        used = self.meter.use({STREAM: (begun_ns, ended_ns)}) if self.meter else None
        self.stats = StreamStats(len(self.requests), made, self._num_steps, seconds, peaks, times, used)
        ran = in_steps(ran, self._steps)
        if not ran:
            return
        self._end_histories()
        assert run.rules is not None
        metadata = {
            **describe_run(run, [one.ids for one in self.requests]),
            "device": run.device.facts,
            "shape": describe_shape(run.shape(run.policy.num_micro_batches)),
            "streamed_bytes": [0 if layer is None else layer.decode_bytes for layer in run.streamed],
            "locked_bytes": run.locked_bytes,
            **described_energy(used, made),
        }
        zero_ns, last_ns = min(one.start.time_ns for one in ran), max(one.end.time_ns for one in ran)
        power = self.meter.power(zero_ns, last_ns) if self.meter else []
        trace = make_trace(ran, metadata, self._histories, power)
        self.trace = with_record(trace, run.rules, self.requests, self._steps, begun_ns, zero_ns)


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
