"""What a stream is asked for, how far each request is, and what comes out."""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from engine.generation.asked import GenerationRequest, asked_of
from engine.generation.rows import Choosing, RowRequest, TokenLogprobs
from sim.admission import Joins
from traces.errors import InputError, check_range

MOST_ARRIVAL_S = 1e6
"""Twelve days."""


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """What one request generated; `number` counts the requests of a stream from 0, as they were given.

    `sequence` has ids without the prompt; `text` is None without a tokenizer.
    """

    number: int
    sequence: list[int]
    text: str | None
    ended: bool
    """Whether the model ended it, not its limit."""
    error: str = ""
    """Why it did not come to its end, if it did not."""
    logprobs: list[TokenLogprobs] | None = None
    """Of its tokens, if it asked for them."""


@dataclass(slots=True, eq=False)
class Wanted:
    """A request that can be run, and what it has."""

    number: int
    asked: RowRequest
    arrival_ns: int = 0
    tokens: list[int] = field(default_factory=list)
    is_over: bool = False
    """Whether it gets no more tokens."""
    cancelled: bool = False
    """Whether nobody wants it any more."""
    error: str = ""
    first_token_ns: int = 0
    """When it had its first token, and its last, by the host's clock."""
    end_ns: int = 0
    chosen_by: tuple[Choosing, int] | None = None
    """Who chooses its tokens, if it is not simply the likeliest one, and which row of theirs it is."""

    @property
    def ids(self) -> list[int]:
        return self.asked.ids

    @property
    def most_tokens(self) -> int:
        return self.asked.max_new_tokens

    @property
    def lengths(self) -> tuple[int, int]:
        """Tokens of its prompt, and the most that it generates."""
        return len(self.ids), self.most_tokens

    def take(self, token: int, *, ends: bool) -> None:
        """The next token; `ends`: no other follows. What is over or not wanted takes none."""
        if self.cancelled and not self.is_over:
            self.drop()
        if not self.is_over:
            self.end_ns = time.perf_counter_ns()
            self.first_token_ns = self.first_token_ns or self.end_ns
            self.tokens.append(token)
            self.is_over = ends or len(self.tokens) == self.most_tokens

    def drop(self) -> None:
        """It ends here, as nobody wants it any more."""
        self.is_over, self.error = True, "cancelled"

    def begin_again(self) -> None:
        """From its prompt, in other company."""
        self.tokens.clear()
        self.is_over, self.first_token_ns = False, 0

    def output(self, ends: Collection[int], tokenizer: PreTrainedTokenizerBase | None) -> RequestOutput:
        """What it has, for whoever asked."""
        sequence = list(self.tokens)
        text = None if tokenizer is None else str(tokenizer.decode(sequence, skip_special_tokens=True))
        ended = bool(sequence) and sequence[-1] in ends
        return RequestOutput(self.number, sequence, text, ended, self.error, self._logprobs())

    def _logprobs(self) -> list[TokenLogprobs] | None:
        if self.chosen_by is None or self.asked.top_logprobs is None:
            return None
        choosing, row = self.chosen_by
        return choosing.logprobs(row)[: len(self.tokens)]


def check_wanted(
    requests: Sequence[GenerationRequest],
    max_new_tokens: int,
    seed: int | None,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    refuse: Callable[[RequestOutput], None],
) -> list[Wanted]:
    """Those of the requests that can be run; `refuse` is told of each that cannot be, and why."""
    found = []
    for number, request in enumerate(requests):
        try:
            when = check_range(f"prompt {number}: arrival_s", request.arrival_s, 0, MOST_ARRIVAL_S, "seconds")
            asked = asked_of(request, number, max_new_tokens, seed, model, tokenizer)
            found.append(Wanted(number, asked, round(when * 1e9)))
        except InputError as error:
            refuse(RequestOutput(number, [], None, ended=False, error=str(error)))
    return found


def most_held(lengths: Sequence[tuple[int, int]], places: int, joins: Joins) -> list[int]:
    """Tokens of KV cache that as many requests as there are places may come to have, whichever of them are in.

    Of each request we know the tokens of its prompt, and the most that it generates, of which the last needs no entry.
    Who joins together counts as the longest prompt with the most tokens.
    """
    if joins is Joins.TOGETHER and lengths:
        longest, most = map(max, zip(*lengths, strict=True))
        return [longest + most - 1] * places
    return sorted((prompt + most - 1 for prompt, most in lengths), reverse=True)[:places]
