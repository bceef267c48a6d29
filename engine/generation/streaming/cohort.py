"""Requests whose prompts were computed together: one unmodified `generate()`, watched token by token."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from engine.generation.rows import choosing_for, stops_of
from engine.generation.streaming.wanted import Wanted
from engine.model import InFlight
from engine.tasks import RunContext, make_micro_batch


class Watch(StoppingCriteria):
    """Sees each token as `generate()` makes it, and says which requests it need not go on with.

    A request ends at a token that ends sequences, at its own limit, where one of `others` says so, and when nobody
    wants it any more.
    """

    def __init__(self, requests: Sequence[Wanted], ends: Collection[int], others: Sequence[Any]) -> None:
        self._requests, self._ends, self._others = requests, ends, others

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        newest, stopped = input_ids[:, -1].tolist(), self._stopped(input_ids, scores, **kwargs)
        for request, token, stops in zip(self._requests, newest, stopped, strict=True):
            request.take(token, ends=stops or token in self._ends)
        return torch.tensor([request.is_over for request in self._requests], device=input_ids.device)

    def _stopped(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> list[bool]:
        stopped = torch.zeros(len(self._requests), dtype=torch.bool, device=input_ids.device)
        for one in self._others:
            stopped = stopped | one(input_ids, scores, **kwargs)
        return stopped.tolist() if self._others else [False] * len(self._requests)  # the device is waited for


@dataclass(slots=True, eq=False)
class Cohort:
    """Requests of one `generate()`, from their prompts on until the last of them has ended."""

    micro_batch: InFlight
    left: list[Wanted]
    """Those of whose end nobody was told."""

    @classmethod
    def of(cls, run: RunContext, index: int, requests: list[Wanted], entered: int, capacity: int) -> "Cohort":
        """One whose prompts are computed in step `entered`, with room for as many and as long ones as there may be.

        Each draws as if it were generated alone with its own seed.
        """
        asked, kwargs = [one.asked for one in requests], run.options.kwargs
        watch = Watch(requests, run.ends, stops_of(kwargs, asked))
        criteria: dict[str, Any] = {"stopping_criteria": StoppingCriteriaList([watch])}
        criteria |= {"stop_strings": None, "tokenizer": None}  # the watch knows them
        choosing = choosing_for(run.model, kwargs, asked)
        if choosing is not None:
            criteria |= choosing.arguments
            for row, request in enumerate(requests):
                request.chosen_by = choosing, row
        most = max(one.most_tokens for one in requests)
        ids = [one.ids for one in requests]
        made = make_micro_batch(run, index, ids, asked[0].seed, max_new_tokens=most, **criteria)
        made.entered, made.capacity = entered, capacity
        return cls(made, list(requests))

    @property
    def error(self) -> Exception | None:
        """Why it broke, if it did."""
        return self.micro_batch.error

    @property
    def prompt_tokens(self) -> int:
        """Tokens of its prompts, padding included."""
        return len(self.micro_batch.padding) * self.micro_batch.width

    def take_ended(self) -> list[Wanted]:
        """Requests that have ended since the last time; all that are left when it has finished or broken."""
        if self.micro_batch.finished:
            for request in self.left:
                request.is_over = True
        over = [one for one in self.left if one.is_over or self.error is not None]
        self.left = [one for one in self.left if one not in over]
        return over
