"""The same requests batch after batch: each batch is prefilled whole, then decoded whole, and nobody enters meanwhile.

A batch begins when the one before has ended and as many requests wait as it holds, or when no other is left to come.
It lasts as long as the longest of its requests; whoever ends before leaves a hole, which costs what it did.
"""

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from sim.admission import Priority, RequestStream, StreamedRequest
from sim.cost import Setup
from sim.problem import Batch, MicroBatch, kv_budget, split_prompts
from sim.simulation.compiled import CompiledPath
from sim.simulation.energy import Joules, active_of, added, drawn_by
from sim.simulation.prediction import NS
from sim.simulation.sampling import StepTotals, sample
from sim.simulation.stream.results import RequestTimes, StreamResult, lane_summaries
from traces.analysis import LaneUse


def serve_in_batches(
    setup: Setup, stream: RequestStream, priority: Priority = Priority.ARRIVAL, *, exact: bool = False
) -> StreamResult:
    """Every request of a stream in batches of the setup's policy, the last one as large as what is left.

    The setup's workload says what a request may generate at most, by which memory is counted, and whether prompts are
    padded. Raises InputError where a batch does not fit the machine's memories.
    """
    workload = setup.problem.workload
    longest = max(one.prompt_tokens for one in stream.requests) + workload.gen_len
    budget = max(longest, kv_budget(workload, setup.policy.micro_batch_size))
    run = _Run(_BatchTimes(setup, exact), stream, priority is Priority.LONGEST, budget)
    while run.num_left:
        run.serve_next()
    return run.result()


@dataclass(frozen=True, slots=True)
class _Simulated:
    """One batch: when each step ends, what lanes did and drew, and how many steps were simulated for it."""

    ends_ns: Sequence[float]
    lanes: Sequence[LaneUse]
    active_j: Joules
    num_simulated: int


class _BatchTimes:
    """Batches simulated as `predict` does, and once for all that are alike."""

    def __init__(self, setup: Setup, exact: bool) -> None:
        self.setup, self._exact = setup, exact
        self._known: dict[Batch, _Simulated] = {}

    @property
    def num_simulated(self) -> int:
        """Steps that were simulated."""
        return sum(one.num_simulated for one in self._known.values())

    def of(self, batch: Batch) -> _Simulated:
        """What a batch takes. Raises InputError if it does not fit."""
        if batch not in self._known:
            self._known[batch] = self._simulated(batch)
        return self._known[batch]

    def _simulated(self, batch: Batch) -> _Simulated:
        problem = self.setup.problem
        most = max(batch.gen_len, problem.workload.gen_len)
        replace(self.setup, given_batch=replace(batch, gen_len=most)).require_fit()
        workload = replace(problem.workload, gen_len=batch.gen_len)
        setup = replace(self.setup, problem=replace(problem, workload=workload), given_batch=batch)
        found = sample(setup, CompiledPath(setup), exact=self._exact)
        whole = StepTotals()
        whole.add(found.prefill)
        whole.add(found.decode)
        lanes, joules = tuple(whole.lanes.values()), active_of(setup, found.shares)
        return _Simulated(found.ends_ns(), lanes, joules, len(found.simulated_steps))


@dataclass(slots=True)
class _Run:
    """The clock, who waits, and what was seen so far."""

    times: _BatchTimes
    stream: RequestStream
    longest_first: bool
    kv_budget_tokens: int
    """Room of a micro-batch in the KV cache: that for requests of the average length, but for one at least."""
    now_ns: int = 0
    num_arrived: int = 0
    waiting: list[tuple[int, int]] = field(default_factory=list)
    """A heap of who comes next: by length if the longest do, then by number, which is the order of arrival."""
    done: list[RequestTimes] = field(default_factory=list)
    lanes: dict[str, LaneUse] = field(default_factory=dict)
    active_j: Joules = field(default_factory=dict)
    num_steps: int = 0
    held_ns: int = 0
    num_tokens: int = 0
    steady_to: tuple[int, int] | None = None
    """When the last batch ended that had left others waiting, and the tokens until then."""

    @property
    def num_left(self) -> int:
        """Requests that no batch has had yet."""
        return len(self.stream.requests) - len(self.done)

    def serve_next(self) -> None:
        """One batch, from its start to its end."""
        size = min(self.times.setup.policy.batch_size, self.num_left)
        self._wait_for(size)
        requests = [self.stream.requests[heapq.heappop(self.waiting)[1]] for _ in range(size)]
        batch, taken = self._cut(requests)
        for one in requests:
            if one.id not in taken:
                self._await(one)
        found = self.times.of(batch)
        for one in requests:
            if one.id in taken:
                self._serve(one, found.ends_ns)
        self.now_ns += round(found.ends_ns[-1])
        self.num_steps += len(found.ends_ns)
        for use in found.lanes:
            self.lanes.setdefault(str(use.lane), LaneUse(use.lane)).add(use)
        added(self.active_j, found.active_j)
        if self.waiting:
            self.steady_to = (self.now_ns, self.num_tokens)

    def _wait_for(self, size: int) -> None:
        """Until so many wait; others may have come meanwhile."""
        requests, missing = self.stream.requests, size - len(self.waiting)
        if missing > 0:
            self.now_ns = max(self.now_ns, requests[self.num_arrived + missing - 1].arrival_ns)
        while self.num_arrived < len(requests) and requests[self.num_arrived].arrival_ns <= self.now_ns:
            self._await(requests[self.num_arrived])
            self.num_arrived += 1

    def _await(self, one: StreamedRequest) -> None:
        heapq.heappush(self.waiting, (-one.prompt_tokens if self.longest_first else 0, one.id))

    def _cut(self, requests: Sequence[StreamedRequest]) -> tuple[Batch, set[int]]:
        """The batch that some requests make, as one device sees it, and who is in.

        Where each device has a part of the requests, the first stands for all.
        """
        each, first, taken = -(-len(requests) // self.times.setup.num_parts), tuple[MicroBatch, ...](), set[int]()
        for start in range(0, len(requests), each):
            mine = requests[start : start + each]
            split = self._split(mine)
            first = first or tuple(map(MicroBatch.of, split))
            left = Counter(length for lengths in split for length in lengths)
            for one, length in zip(mine, self._lengths(mine), strict=True):
                if left[length]:
                    left[length] -= 1
                    taken.add(one.id)
        generated = max(one.generated_tokens for one in requests if one.id in taken)
        setup = self.times.setup
        return Batch(first, 0, generated, setup.num_parts, sampled=setup.problem.workload.sampled), taken

    def _split(self, requests: Sequence[StreamedRequest]) -> list[Sequence[int]]:
        """Lengths of the prompts of each micro-batch."""
        setup = self.times.setup
        workload, size = setup.problem.workload, setup.policy.micro_batch_size
        lengths = self._lengths(requests)
        return split_prompts(lengths, size, workload.gen_len, self.kv_budget_tokens, padded=workload.padded)

    def _lengths(self, requests: Sequence[StreamedRequest]) -> list[int]:
        """Those of prompts, padded to the longest of them if the workload's are."""
        lengths = [one.prompt_tokens for one in requests]
        return [max(lengths)] * len(lengths) if self.times.setup.problem.workload.padded else lengths

    def _serve(self, one: StreamedRequest, ends_ns: Sequence[float]) -> None:
        first, end = (self.now_ns + round(ends_ns[step]) for step in (0, one.generated_tokens - 1))
        self.held_ns += end - self.now_ns
        self.num_tokens += one.generated_tokens
        self.done.append(RequestTimes(one.id, one.arrival_ns, first, end, one.generated_tokens))

    def result(self) -> StreamResult:
        steady = None
        if self.steady_to is not None:
            end_ns, tokens = self.steady_to
            steady = tokens / (end_ns * NS)
        lanes = lane_summaries(self.lanes.values(), self.now_ns)
        occupancy = self.held_ns / (self.times.setup.policy.batch_size * self.now_ns)
        done = tuple(sorted(self.done, key=lambda one: one.id))
        hardware = self.times.setup.problem.hardware
        drawn = drawn_by(hardware, self.active_j, self.now_ns * NS, len(done), self.num_tokens)
        return StreamResult(done, lanes, steady, self.num_steps, self.times.num_simulated, 0, occupancy, drawn)
