"""Who is in, step by step: admission decides, and micro-batches carry what it says.

Where requests join together, a place is filled when it is empty: the requests whose prompts one `generate()` computed
stay there until the last of them has ended. Who may join at any time does so elsewhere (`joined`).

The schedule issues the same tasks for every step. Whom they work for is known from the last head of the step before on;
until then other lanes wait, if they come so early.
"""

import queue
import threading
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import torch

from engine.generation.streaming.cohort import Cohort
from engine.generation.streaming.wanted import Wanted
from engine.memory import Activations
from engine.model import InFlight, bears_padding
from engine.tasks import Carried, RunContext
from sim.admission import Admission, Composition, StreamedRequest
from sim.problem import within_window
from sim.schedule import LaneKind, Op, PipelineShape, Task
from sim.simulation import ServedStep
from traces.errors import InputError

FIRST = 1
"""The first step of a stream for the schedule, whose step 0 is the prefill of a batch."""

STEPS_KEPT = 8
"""So many steps are known at a time; lanes are never further apart, as the queue issues no more."""

LOOK_UP_S = 0.05
"""How often a lane that waits for a step to begin looks whether the run has ended meanwhile."""


class Cohorts(Carried):
    """Requests of a stream by micro-batches. All but `of` and `cancel` is called in the thread of the GPU lane."""

    def __init__(
        self,
        run: RunContext,
        shape: PipelineShape,
        requests: Sequence[Wanted],
        activations: Activations,
        tell: Callable[[Wanted], None],
        on_step: Callable[[ServedStep], None],
    ) -> None:
        """`tell` is told of each request as it ends, `on_step` of each step as it begins."""
        assert run.rules is not None
        self._run, self._shape, self._activations = run, shape, activations
        self._tell, self._on_step = tell, on_step
        self._admission = Admission(run.rules)
        self._alone = not bears_padding(run.model)
        self._most_requests = run.rules.micro_batch_size
        self._capacity = max((len(one.ids) for one in requests), default=1)
        self._capacity += max((one.most_tokens for one in requests), default=1) - 1
        self._coming = deque(sorted(requests, key=lambda one: one.arrival_ns))
        self._waiting: dict[int, Wanted] = {}
        self._cancelled = queue.SimpleQueue[int]()
        self._live: list[Cohort] = []
        self._steps: dict[int, list[InFlight | None]] = {}
        self._newest = FIRST - 1
        self._heads = 0
        self._over = False
        self._changed = threading.Condition()
        self.is_stopped: Callable[[], bool] = lambda: False
        """Whether the lanes end, whatever is left to do."""
        self.begun_ns = time.perf_counter_ns()
        """When the stream began: requests come so long after it as they say."""

    def take_memory(self, locked: bool) -> None:
        """Takes memory of the host that is known to be needed, page-locked or not, before the first task."""

    def of(self, task: Task) -> InFlight | None:
        if task.op is Op.LOAD_KV and task.micro_batch < self._shape.num_prompts:
            return None  # a prompt is computed whole: of no earlier part is there anything to load
        with self._changed:
            while task.step > self._newest:
                if task.lane.kind is LaneKind.GPU:
                    raise RuntimeError(f"schedule {self._run.schedule.name}: step {task.step} begins before its time")
                if self._over or self.is_stopped():
                    return None
                self._changed.wait(LOOK_UP_S)
            micro_batch = self._steps[task.step][task.micro_batch]
        if micro_batch is None or micro_batch.error is not None or micro_batch.has_left(task):
            return None
        return micro_batch

    @property
    def over(self) -> bool:
        return self._over

    def in_flight(self) -> Iterable[InFlight]:
        return [cohort.micro_batch for cohort in self._live]

    def most_tokens(self, micro_batch: int, *, prompts: bool) -> int:
        return self._run.most_tokens(micro_batch)

    @property
    def most_requests(self) -> int:
        return self._most_requests

    def most_cached_tokens(self, window: int | None, *, on_host: bool = False) -> int:
        return self._most_requests * int(within_window(self._capacity, window))

    def cancel(self, number: int) -> None:
        """A request that waits leaves before the next step. From any thread."""
        self._cancelled.put(number)

    def head_done(self) -> None:
        """One more micro-batch has come to the end of the step, or had nothing to do in it; the last one ends it."""
        self._heads += 1
        if self._heads == self._shape.num_micro_batches:
            self._heads = 0
            self.advance()

    def breaks(self, task: Task, error: Exception) -> bool:
        """Whether an error is of a task's requests and not of the run: it came out of what they bring along themselves.

        That is called when generation begins and in the head. The others go on; these begin again, each alone.
        """
        if task.op not in (Op.PRE_ATTN, Op.HEAD) or isinstance(error, InputError | torch.OutOfMemoryError):
            return False
        micro_batch = self._steps[task.step][task.micro_batch]
        if micro_batch is None:
            return False
        begins = task.op is Op.PRE_ATTN and micro_batch.step == 0 and task.layer == self._shape.first_on_device
        if not (begins or task.op is Op.HEAD) or not micro_batch.is_broken:
            return False
        micro_batch.error = error
        return True

    def advance(self) -> None:
        """The next step begins: whoever has ended leaves, and others enter. If nobody is there, the next one does."""
        ended = [one.number for one in self._leave()]
        before_ns = now_ns = self._let_in()
        while not (self._live or self._waiting) and self._coming and not self.is_stopped():
            time.sleep(min(LOOK_UP_S, max(0.0, (self._coming[0].arrival_ns - now_ns) / 1e9)))
            self._drop_cancelled([])
            now_ns = self._let_in()
        composition = self._admission.step(ended)
        self._carry(composition)
        self._on_step(ServedStep(composition, now_ns, self._admission.num_waiting, now_ns - before_ns))

    def _let_in(self) -> int:
        """Whoever has come waits from now on; returns when that is, counted from the beginning."""
        now_ns = time.perf_counter_ns() - self.begun_ns
        while self._coming and self._coming[0].arrival_ns <= now_ns:
            self._arrive(self._coming.popleft())
        return now_ns

    def _arrive(self, request: Wanted, *, alone: bool = False) -> None:
        most, alone = request.most_tokens, alone or self._alone
        try:
            self._admission.arrive(StreamedRequest(request.number, len(request.ids), most, most, alone=alone))
        except InputError as error:
            request.error = str(error)
            self._tell(request)
        else:
            self._waiting[request.number] = request

    def _leave(self) -> list[Wanted]:
        """Requests that were in or waited, and do no more, or begin again."""
        left: list[Wanted] = []
        for cohort in self._live:
            alone = len(cohort.micro_batch.padding) == 1
            for request in cohort.take_ended():
                left.append(request)
                if cohort.error is None or request.is_over:
                    self._tell(request)
                elif alone:
                    request.error = f"{type(cohort.error).__name__}: {cohort.error}"
                    self._tell(request)
                else:
                    request.begin_again()
                    self._arrive(request, alone=True)
        self._live = [one for one in self._live if one.left]
        return left + self._drop_cancelled(left)

    def _drop_cancelled(self, left: Sequence[Wanted]) -> list[Wanted]:
        """Those of who waits, or has not come yet, that nobody wants any more; returns those who waited.

        `left` are known to have left already.
        """
        dropped: list[Wanted] = []
        while not self._cancelled.empty():
            number = self._cancelled.get()
            waiting = self._waiting.get(number)
            request = waiting or next((one for one in self._coming if one.number == number), None)
            if request is None or request in left:
                continue
            if waiting is not None:
                del self._waiting[number]
                dropped.append(waiting)
            else:
                self._coming.remove(request)
            request.drop()
            self._tell(request)
        return dropped

    def _carry(self, composition: Composition) -> None:
        step = composition.step + FIRST
        carried = self._micro_batches(composition, step)
        with self._changed:
            self._steps[step] = carried
            self._steps.pop(step - STEPS_KEPT, None)
            self._newest, self._over = step, composition.is_empty
            self._changed.notify_all()

    @abstractmethod
    def _micro_batches(self, composition: Composition, step: int) -> list[InFlight | None]:
        """What the micro-batches of a step carry: those of prompts, then those that decode."""

    def _begin(self, index: int, numbers: Iterable[int], step: int) -> Cohort | None:
        """Requests that enter as one micro-batch, if there are any."""
        requests = [self._waiting.pop(number) for number in numbers]
        return Cohort.of(self._run, index, requests, step, self._capacity) if requests else None

    def _take_in(self, cohorts: Iterable[Cohort | None]) -> None:
        new = sorted((one for one in cohorts if one is not None), key=lambda one: one.prompt_tokens)
        for cohort in new:  # what the largest works with counts for all of them
            self._activations.enter(cohort.micro_batch)
        self._live += new
