"""What admission goes by: room, places, the size of chunks, and who comes first."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from sim.problem import within_window
from traces.errors import InputError, check_choice, check_count, check_flag, check_range

BLOCK_TOKENS = 64
"""Tokens of a block of KV cache: a request leaves half of its last one empty; where a block ends attention loses time.

Our kernel on the host read blocks of 16, 32 and 64 tokens 0.59 to 0.77, 0.79 to 0.87 and 0.91 to 0.95 times as fast as
one piece (Mixtral's heads in bfloat16, one thread of a busy EPYC, CPU time).
"""
MEASURED_BLOCK_TOKENS = (64, 32, 16)
"""What is known to work, the fastest first: smaller ones leave less room empty, above all where a window is short."""

BLOCK_START_TOKENS = 9
"""To begin a block takes attention on the host as long as so many tokens: in the middle of what was measured."""


LONGEST_LIMIT_S = 1e9
"""Of what may be asked of a request: thirty years."""


class Prompts(StrEnum):
    """When the prompts of a stream are computed."""

    BEFORE = "before"  # batch after batch: all of a batch, then its decode
    BESIDE = "beside"  # in the steps of those who decode


class Priority(StrEnum):
    """Which of the requests that wait enters next."""

    ARRIVAL = "arrival"  # the one that came first
    LONGEST = "longest"  # the one with the longest prompt; of two, the one that came first


class Joins(StrEnum):
    """When a request may enter a micro-batch that decodes."""

    ANY_TIME = "any-time"  # while others decode there
    TOGETHER = "together"  # only while it is empty, with others, whose prompts are computed whole in the same step


class KvLayers(NamedTuple):
    """Layers that hold what a request has in the same way."""

    units: int = 1
    """What a block of all these layers counts."""
    window: int | None = None
    """Of its tokens they keep the last so many: in a full window the newest takes the place of the oldest."""

    def blocks_of(self, tokens: Any, block_tokens: int) -> Any:
        """Blocks of one request that has had so many tokens; of an array of such numbers, each one's."""
        return self.units * -(-within_window(tokens, self.window) // block_tokens)


ALL_ALIKE = (KvLayers(),)


@dataclass(frozen=True, slots=True)
class AdmissionRules:
    """The room that requests share, and how it is given out. Raises InputError, naming the field.

    A step decodes up to `micro_batch_size` requests in each of `num_micro_batches`, and takes up to `prefill_chunk`
    tokens of prompts in each of `num_prompts` more.
    """

    num_blocks: int
    """Blocks of the KV cache: the memory plan's room for it. They are counted in the units of `layers`."""
    micro_batch_size: int
    num_micro_batches: int
    prefill_chunk: int
    num_prompts: int = 1
    block_tokens: int = BLOCK_TOKENS
    priority: Priority = Priority.ARRIVAL
    preempts: bool = False
    """Whether requests enter while there is room for what they hold now, and the last one leaves, to be computed anew,
    where that has been too many. Else all who are in have room to the end, even if each generates all that it may.
    """
    layers: Sequence[KvLayers] = ALL_ALIKE
    """All layers, those with sliding windows of their own apart."""
    joins: Joins = Joins.ANY_TIME
    """Who joins together counts as the longest of them, as its prompt is padded, and the room of all is kept until the
    last of them ends; so many enter as `prefill_chunk` holds whole prompts.
    """
    whole_prompts: bool = False
    """Whether a prompt is computed in one step, beside up to `micro_batch_size` in all, filled up to the longest:
    so many as `prefill_chunk` holds. Who joins together is computed so anyhow.
    """

    def __post_init__(self) -> None:
        for name in (
            "num_blocks", "micro_batch_size", "num_micro_batches", "prefill_chunk", "num_prompts", "block_tokens"
        ):  # fmt: skip
            check_count(name, getattr(self, name))
        check_choice("priority", self.priority, Priority)
        check_flag("preempts", self.preempts)
        check_choice("joins", self.joins, Joins)
        check_flag("whole_prompts", self.whole_prompts)
        if self.preempts and self.joins is Joins.TOGETHER:
            raise InputError("preempts: true where requests join together, whose room is one: give false")
        if self.preempts and self.whole_prompts:
            raise InputError(
                "preempts: true where prompts are whole, as one that is computed anew may be too long: give false"
            )

    @property
    def splits_prompts(self) -> bool:
        """Whether a prompt may be computed in several steps."""
        return not self.whole_prompts and self.joins is Joins.ANY_TIME

    @property
    def most_running(self) -> int:
        """Requests that have a place at a time."""
        return self.micro_batch_size * self.num_micro_batches

    @property
    def prompt_tokens_a_step(self) -> int:
        """Tokens of prompts that a step takes at most."""
        return self.prefill_chunk * self.num_prompts

    def blocks_of(self, tokens: Any) -> Any:
        """Blocks of one request that has so many tokens; of an array of such numbers, each one's."""
        return sum(one.blocks_of(tokens, self.block_tokens) for one in self.layers)


def attention_slowdown(block_tokens: int) -> float:
    """How much longer attention on the host takes in blocks of so many tokens than in usual ones."""
    return max(1.0, (1 + BLOCK_START_TOKENS / block_tokens) / (1 + BLOCK_START_TOKENS / BLOCK_TOKENS))


@dataclass(frozen=True, slots=True)
class Service:
    """How requests are to be served, as far as that is asked for. Raises InputError, naming the field."""

    prefill_chunk: int | None = None
    """Tokens that a micro-batch of prompts takes in a step; None: as many as turn out best."""
    num_prompts: int | None = None
    """Micro-batches of prompts in a step; None: one, or where the policy is searched as many as turn out best."""
    priority: Priority = Priority.ARRIVAL
    preempts: bool = False
    ttft_limit_s: float | None = None
    """A request counts as served well that has its first token so soon after it came, and"""
    tpot_limit_s: float | None = None
    """each of the others so soon after the one before, on average."""
    block_tokens: int | None = None
    """Tokens of a block of the KV cache; None: BLOCK_TOKENS, or where the policy is searched as many as turn out best.
    """

    def __post_init__(self) -> None:
        for name in ("prefill_chunk", "num_prompts", "block_tokens"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        check_choice("priority", self.priority, Priority)
        check_flag("preempts", self.preempts)
        for name in ("ttft_limit_s", "tpot_limit_s"):
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), 0, LONGEST_LIMIT_S, "seconds")

    @property
    def has_limits(self) -> bool:
        """Whether anything is asked of a request that counts as served well."""
        return self.ttft_limit_s is not None or self.tpot_limit_s is not None
