"""What a stream is asked for, how far each request is, and what comes out."""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from engine.generation.prompts import Prompt, check_length, prompt_ids
from traces.errors import InputError, check_count, check_range

MOST_ARRIVAL_S = 1e6
"""Twelve days."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A prompt, as text or token ids, and how many tokens it may generate; None: as many as the stream says."""

    prompt: Prompt
    max_new_tokens: int | None = None
    arrival_s: float = 0.0
    """When it comes, in seconds from the first step on. Nobody takes it into account before."""


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


@dataclass(slots=True, eq=False)
class Wanted:
    """A request that can be run, and what it has."""

    number: int
    ids: list[int]
    most_tokens: int
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
        return RequestOutput(self.number, sequence, text, bool(sequence) and sequence[-1] in ends, self.error)


def check_wanted(
    asked: Sequence[Prompt | GenerationRequest],
    max_new_tokens: int,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    refuse: Callable[[RequestOutput], None],
) -> list[Wanted]:
    """Those of the requests that can be run; `refuse` is told of each that cannot be, and why."""
    found = []
    for number, one in enumerate(asked):
        request = one if isinstance(one, GenerationRequest) else GenerationRequest(one)
        try:
            found.append(_checked(request, number, max_new_tokens, model, tokenizer))
        except InputError as error:
            refuse(RequestOutput(number, [], None, ended=False, error=str(error)))
    return found


def _checked(
    request: GenerationRequest,
    number: int,
    max_new_tokens: int,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
) -> Wanted:
    if not isinstance(request.prompt, str | Sequence):
        raise InputError(f"prompt {number} is a {type(request.prompt).__name__}: give text or a list of token ids")
    most = max_new_tokens if request.max_new_tokens is None else request.max_new_tokens
    check_count(f"prompt {number}: max_new_tokens", most)
    ids = prompt_ids(request.prompt, number, tokenizer)
    check_length(ids, f"prompt {number}", most, model)
    arrival_s = check_range(f"prompt {number}: arrival_s", request.arrival_s, 0, MOST_ARRIVAL_S, "seconds")
    return Wanted(number, ids, most, round(arrival_s * 1e9))
