"""Who is in: decides step by step which requests enter, and what each micro-batch of the step carries.

It has no clock and no chance: the same requests, told in the same steps, give the same compositions, in the simulator
and in the engine. What a request generates it learns only when it ends.
"""

import heapq
from collections import deque
from collections.abc import Collection, Iterable

from sim.admission.composition import Chunk, Composition
from sim.admission.ledger import KvLedger
from sim.admission.requests import StreamedRequest
from sim.admission.rules import AdmissionRules, Joins, Priority
from sim.admission.stay import NOWHERE, Stay, decodings, planned_blocks
from sim.admission.together import take_together, take_whole
from traces.errors import InputError


class Admission:
    """The requests of one run, waiting or in. Each is in until it ends; blocks are held at its real age.

    Who waits enters strictly in the order of the rules' priority, those that were preempted before all others: nobody
    overtakes a request for which there is no room yet. A prompt is computed by one micro-batch, a chunk a step.
    """

    def __init__(self, rules: AdmissionRules) -> None:
        self.rules = rules
        self._step = -1
        self._ledger = KvLedger(rules.num_blocks)
        self._arrived = 0
        self._waiting: list[tuple[int, int, StreamedRequest]] = []
        self._resuming: deque[tuple[StreamedRequest, int]] = deque()  # with the tokens they have
        self._stays: dict[int, Stay] = {}  # in the order in which they entered
        self._computing: list[Stay | None] = [None] * rules.num_prompts
        self._context = [0] * rules.num_micro_batches
        self._members: list[dict[int, Stay]] = [{} for _ in range(rules.num_micro_batches)]
        self._ended: list[list[Stay]] = [[] for _ in self._members]  # of those who joined together
        self._begun: list[Stay] = []  # whose prompts the step before has ended
        self._due: dict[int, list[Stay]] = {}  # by the step before which they have all that they may generate

    @property
    def held_blocks(self) -> int:
        """Blocks that the present step holds."""
        return self._ledger.held

    @property
    def num_waiting(self) -> int:
        return len(self._waiting) + len(self._resuming)

    @property
    def num_running(self) -> int:
        return len(self._stays)

    def arrive(self, request: StreamedRequest) -> None:
        """A request waits from now on. Raises InputError, and forgets it, if it could not be in even alone."""
        rules, last = self.rules, request.prompt_tokens + request.most_tokens - 1
        needs = rules.blocks_of(last)
        if needs > rules.num_blocks:
            raise InputError(
                f"request {request.id}: a prompt of {request.prompt_tokens} tokens and {request.most_tokens} generated "
                f"ones take {needs} blocks of KV cache, of which there are {rules.num_blocks}: shorten "
                f"it, let it generate less, or give more memory"
            )
        if not rules.splits_prompts and request.prompt_tokens > rules.prefill_chunk:
            raise InputError(
                f"request {request.id}: a prompt of {request.prompt_tokens} tokens, which is computed whole, is more "
                f"than the {rules.prefill_chunk} that a step takes: shorten it, or give a larger prefill_chunk"
            )
        longest = request.prompt_tokens if rules.priority is Priority.LONGEST else 0
        heapq.heappush(self._waiting, (-longest, self._arrived, request))
        self._arrived += 1

    def step(self, ended: Collection[int] = ()) -> Composition:
        """What the next step carries, when the one before has ended; it is empty if nobody is in and nobody waits.

        `ended` names the requests that go: they met their end, or nobody wants them any more. One that has all the
        tokens that it may generate goes anyhow.
        """
        begun = self._count_tokens()
        self._let_go(ended)
        self._begin_decoding(begun)
        self._end_together()
        self._step += 1
        if self._step:
            self._ledger.advance()
        preempted = tuple(self._preempt()) if self.rules.preempts else ()
        decoding = tuple(decodings(mine.values()) for mine in self._members)
        chunks, room = self._continue_prompts()
        if self.rules.joins is Joins.TOGETHER:
            places = tuple(self._enter_together(chunks))
            entered = tuple(chunk.request for mine in chunks for chunk in mine)
            over = tuple(map(decodings, self._ended))
            return Composition(self._step, decoding, tuple(map(tuple, chunks)), entered, (), places, over)
        if self.rules.whole_prompts:
            entered = tuple(id_ for lane in range(len(chunks)) for id_ in self._enter_whole(lane, chunks[lane]))
        else:
            entered = () if preempted else tuple(self._enter(chunks, room))
        return Composition(self._step, decoding, tuple(map(tuple, chunks)), entered, preempted)

    def _count_tokens(self) -> list[Stay]:
        """What the step before gave; returns those to whom it gave their first token of this stay."""
        for j, mine in enumerate(self._members):
            for stay in mine.values():
                stay.generated += 1
            self._context[j] += len(mine)
        for stay in (stay for mine in self._ended for stay in mine):
            stay.generated += 1
        begun, self._begun = self._begun, []
        for stay in begun:
            stay.generated += 1
        return begun

    def _begin_decoding(self, begun: Iterable[Stay]) -> None:
        """To each its place: its own, or in the micro-batch with the fewest tokens (MoE-Lightning's Algorithm 2)."""
        for stay in begun:
            if stay.request.id in self._stays:
                stay.micro_batch = self._emptiest() if stay.place == NOWHERE else stay.place
                self._members[stay.micro_batch][stay.request.id] = stay
                self._context[stay.micro_batch] += stay.context_tokens
            elif stay.place != NOWHERE:
                self._ended[stay.place].append(stay)

    def _end_together(self) -> None:
        """Who has ended is computed as long as anybody goes on with whom it joined."""
        for mine, ended in zip(self._members, self._ended, strict=True):
            if not mine:
                ended.clear()

    def _emptiest(self) -> int:
        open_ = (j for j, mine in enumerate(self._members) if len(mine) < self.rules.micro_batch_size)
        return min(open_, key=self._context.__getitem__)

    def _let_go(self, ended: Collection[int]) -> None:
        due = self._due.pop(self._step + 1, ())
        full = [one.request.id for one in due if self._stays.get(one.request.id) is one]
        for id_ in dict.fromkeys((*ended, *full)):
            if id_ in self._stays:
                self._remove(self._stays[id_])
            elif not self._forget(id_):
                raise InputError(f"request {id_}: has ended, but neither waits nor runs; name each once, when it ends")

    def _forget(self, id_: int) -> bool:
        """Strike a request from those that wait, if it is among them."""
        before = self.num_waiting
        self._waiting = [one for one in self._waiting if one[2].id != id_]
        heapq.heapify(self._waiting)
        self._resuming = deque(one for one in self._resuming if one[0].id != id_)
        return self.num_waiting < before

    def _remove(self, stay: Stay) -> None:
        """Out of its place; the blocks that it would have held from the next step on are free."""
        del self._stays[stay.request.id]
        self._ledger.leave(stay.promise)
        if stay.micro_batch != NOWHERE:
            del self._members[stay.micro_batch][stay.request.id]
            self._context[stay.micro_batch] -= stay.context_tokens
            if stay.place != NOWHERE:
                self._ended[stay.place].append(stay)
        elif self._computing[stay.lane] is stay:
            self._computing[stay.lane] = None

    def _preempt(self) -> Iterable[int]:
        """The last ones to enter leave until the others have room; they come first again, and what they have counts."""
        while self._ledger.is_exceeded:
            stay = self._stays[next(reversed(self._stays))]
            self._remove(stay)
            self._resuming.appendleft((stay.request, stay.generated))
            yield stay.request.id

    def _continue_prompts(self) -> tuple[list[list[Chunk]], list[int]]:
        """The next chunk of each prompt that is begun, and the room that is left beside it."""
        chunks: list[list[Chunk]] = [[] for _ in self._computing]
        room = [self.rules.prefill_chunk] * len(chunks)
        for stay in list(self._computing):
            if stay is not None:
                self._take_chunk(stay, chunks, room)
        return chunks, room

    def _take_chunk(self, stay: Stay, chunks: list[list[Chunk]], room: list[int]) -> None:
        chunk = stay.next_chunk(room[stay.lane])
        chunks[stay.lane].append(chunk)
        room[stay.lane] -= chunk.tokens
        self._computing[stay.lane] = None if chunk.is_last else stay
        if chunk.is_last:
            self._await_token(stay)

    def _await_token(self, stay: Stay) -> None:
        """Its prompt ends in this step, which gives it the first of the tokens that it may generate in this stay."""
        self._begun.append(stay)
        self._due.setdefault(self._step + stay.request.most_tokens - stay.generated, []).append(stay)

    def _enter(self, chunks: list[list[Chunk]], room: list[int]) -> Iterable[int]:
        """Requests whose prompts begin in this step: as long as there is a place, room in a chunk, and blocks."""
        while self.num_waiting and len(self._stays) < self.rules.most_running and any(room):
            request, generated = self._resuming[0] if self._resuming else (self._waiting[0][2], 0)
            lane = max(range(len(room)), key=room.__getitem__)
            prompt, most = request.prompt_tokens + generated, request.most_tokens - generated
            needs, prefill_steps = planned_blocks(self.rules, prompt, most, room[lane])
            if not self._ledger.fits(needs[:prefill_steps] if self.rules.preempts else needs):
                return
            self._leave_queue()
            stay = self._stays[request.id] = Stay(request, generated, lane, self._ledger.promise(needs))
            self._take_chunk(stay, chunks, room)
            yield request.id

    def _enter_whole(self, lane: int, chunks: list[Chunk]) -> Iterable[int]:
        """Requests whose prompts one micro-batch computes in this step."""
        room = self.rules.most_running - len(self._stays)
        entering = take_whole(self._waiting, self.rules, self._ledger, room)
        longest = max((request.prompt_tokens for request, _ in entering), default=0)
        for request, promise in entering:
            stay = self._stays[request.id] = Stay(request, 0, lane, promise)
            padding = longest - request.prompt_tokens
            chunks.append(stay.next_chunk(request.prompt_tokens)._replace(padding_tokens=padding))
            self._await_token(stay)
            yield request.id

    def _enter_together(self, chunks: list[list[Chunk]]) -> list[int]:
        """Requests whose prompts are computed in this step; for each micro-batch of them, in which one they decode."""
        empty = deque(j for j, mine in enumerate(self._members) if not mine)
        return [self._begin_together(lane, mine, empty) for lane, mine in enumerate(chunks)]

    def _begin_together(self, lane: int, chunks: list[Chunk], empty: deque[int]) -> int:
        if not empty:
            return NOWHERE
        requests, needs = take_together(self._waiting, self.rules, self._ledger)
        if not requests:
            return NOWHERE
        place, promise = empty.popleft(), self._ledger.promise(needs, len(requests))
        longest = max(request.prompt_tokens for request in requests)
        for request in requests:
            padding = longest - request.prompt_tokens
            stay = self._stays[request.id] = Stay(request, 0, lane, promise, place, padding)
            chunks.append(stay.next_chunk(request.prompt_tokens))
            self._await_token(stay)
        return place

    def _leave_queue(self) -> None:
        if self._resuming:
            self._resuming.popleft()
        else:
            heapq.heappop(self._waiting)
