"""Splits requests into micro-batches of about equal work: Algorithm 2 of MoE-Lightning (arXiv 2411.11217)."""

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from sim.problem.workload import Workload
from traces.errors import InputError, check_count


class NoRoomError(InputError):
    """No request fits the room that a micro-batch of this size sets aside in the KV cache; a larger one may hold it."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Requests that go through a layer together: only the sums over them that decide what they cost."""

    num_requests: int
    prompt_tokens: int
    """Sum of the effective prompt lengths."""
    prompt_tokens_squared: int
    """Sum of their squares: attention in prefill grows with it."""
    max_prompt_tokens: int
    padding_tokens: int = 0
    """How many of `prompt_tokens` are padding, which is computed and stored but which CPU attention does not read."""

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Self:
        """Prompts of these lengths, each as long as it is."""
        return cls(len(lengths), sum(lengths), sum(length * length for length in lengths), max(lengths))

    @classmethod
    def padded(cls, lengths: Sequence[int]) -> Self:
        """Prompts of these lengths, padded to the longest of them."""
        rows, width = len(lengths), max(lengths)
        return cls(rows, rows * width, rows * width**2, width, rows * width - sum(lengths))

    def context_tokens(self, step: int) -> int:
        """KV entries that the micro-batch reads in decode step `step`, the new token of each request included.

        Step 1 is the first decode step: a request with a prompt of s tokens attends to s + 1 entries. Step 0, prefill,
        leaves the s entries of the prompt behind. The last step is gen_len - 1.
        """
        return self.prompt_tokens + self.num_requests * step


@dataclass(frozen=True, slots=True)
class Batch:
    """The requests that run together. No micro-batch is empty."""

    micro_batches: tuple[MicroBatch, ...]
    num_deferred: int
    """Requests that found no room in the KV cache and wait for the next batch."""
    gen_len: int
    copies: int = 1
    """Devices that each work on micro-batches like these, where the schedule gives each a part of the requests."""
    sampled: bool = False
    """Whether tokens are drawn, or scores changed before the highest is taken (Workload)."""
    alike: Mapping[MicroBatch, int] = field(init=False, repr=False, compare=False)
    """How many there are of each distinct micro-batch."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "alike", Counter(self.micro_batches))

    @property
    def num_requests(self) -> int:
        """Requests that run: those asked for, less the deferred ones."""
        return self.copies * sum(count * one.num_requests for one, count in self.alike.items())

    @property
    def prompt_tokens(self) -> int:
        """Prompt tokens of all requests that run."""
        return self.copies * sum(count * one.prompt_tokens for one, count in self.alike.items())

    @property
    def generated_tokens(self) -> int:
        """What throughput counts: the tokens that all requests generate, the one of prefill included."""
        return self.num_requests * self.gen_len


def make_batch(
    workload: Workload, batch_size: int, micro_batch_size: int, kv_budget_tokens: int | None = None
) -> Batch:
    """Split the first `batch_size` requests into ceil(batch_size / micro_batch_size) micro-batches.

    `kv_budget_tokens` is the room of one micro-batch in the KV cache, for prompts and generated tokens. By default it
    is what a planner that knows only the average prompt sets aside: micro_batch_size x (mean prompt + gen_len).

    Padded requests are alike: they fill one micro-batch after the other, and the last may be smaller. Those of a
    workload `in_order` do so too, whatever the budget. Other unpadded ones are balanced by Algorithm 2. A micro-batch
    that gets no request is dropped.
    Raises InputError when a size is below 1, and NoRoomError when not one request fits the budget.
    """
    check_count("micro-batch-size", micro_batch_size)
    if kv_budget_tokens is None:
        kv_budget_tokens = kv_budget(workload, micro_batch_size)
    lengths, padded = workload.requests(batch_size), workload.padded
    if workload.in_order and not padded:
        return Batch(in_order(lengths, micro_batch_size), 0, workload.gen_len, sampled=workload.sampled)
    split = split_prompts(lengths, micro_batch_size, workload.gen_len, kv_budget_tokens, padded=padded)
    if not split:
        raise NoRoomError(
            f"kv budget of {kv_budget_tokens} tokens a micro-batch: holds no request; the shortest needs "
            f"{min(lengths) + workload.gen_len} (prompt + gen_len); use a larger micro-batch-size or a shorter gen-len"
        )
    micro_batches = tuple(_alike(len(mine), mine[0]) if padded else MicroBatch.of(mine) for mine in split)
    num_admitted = sum(micro_batch.num_requests for micro_batch in micro_batches)
    return Batch(micro_batches, batch_size - num_admitted, workload.gen_len, sampled=workload.sampled)


def in_order(lengths: Sequence[int], micro_batch_size: int) -> tuple[MicroBatch, ...]:
    """Prompts of these lengths cut as they come, each micro-batch padded to its longest."""
    starts = range(0, len(lengths), micro_batch_size)
    return tuple(MicroBatch.padded(lengths[start : start + micro_batch_size]) for start in starts)


def kv_budget(workload: Workload, micro_batch_size: int) -> int:
    """Tokens of KV cache that a planner who knows only the average prompt sets aside for a micro-batch."""
    return round(micro_batch_size * (workload.mean_prompt_tokens + workload.gen_len))


def split_prompts(
    lengths: Sequence[int], micro_batch_size: int, gen_len: int, kv_budget_tokens: int, *, padded: bool
) -> list[Sequence[int]]:
    """The lengths of the prompts in each micro-batch of `make_batch`; of those that are alike, the last ones wait."""
    split = _fill_in_order if padded else _balance
    return [mine for mine in split(lengths, micro_batch_size, gen_len, kv_budget_tokens) if mine]


def _alike(count: int, length: int) -> MicroBatch:
    """Requests of one length; however many they are, it takes no longer to say."""
    return MicroBatch(count, count * length, count * length**2, length)


def _fill_in_order(lengths: Sequence[int], capacity: int, gen_len: int, budget: int) -> Iterator[Sequence[int]]:
    """Fill one micro-batch after the other with requests of one length, as far as the budgets of all of them reach."""
    num_micro_batches = -(-len(lengths) // capacity)
    capacity = min(capacity, budget // (lengths[0] + gen_len))
    for j in range(num_micro_batches):
        yield lengths[j * capacity : (j + 1) * capacity]


def _balance(lengths: Sequence[int], capacity: int, gen_len: int, budget: int) -> list[list[int]]:
    """Algorithm 2: the longest request first, each into the open micro-batch with the fewest tokens.

    A micro-batch closes when it holds `capacity` requests. A request that would overflow the one it is meant for waits
    for the next batch; shorter ones behind it may still fit. Of two with equally few tokens, the first takes it.
    """
    longest_first = sorted(lengths, reverse=True)
    members: list[list[int]] = [[] for _ in range(-(-len(longest_first) // capacity))]
    fewest = [(0, j) for j in range(len(members))]  # a heap of (prompt tokens, micro-batch) of the open ones
    for length in longest_first:
        if not fewest:
            break
        tokens, j = fewest[0]
        mine = members[j]
        if tokens + length + (1 + len(mine)) * gen_len > budget:
            continue
        mine.append(length)
        if len(mine) == capacity:
            heapq.heappop(fewest)
        else:
            heapq.heapreplace(fewest, (tokens + length, j))
    return members
