"""Where each request ends: at its own limit and its own stop strings, whatever its company."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import StoppingCriteria
from transformers.generation.stopping_criteria import StopStringCriteria

from engine.generation.rows.request import RowRequest


class RowStops(StoppingCriteria):
    """The stop strings of each row of a micro-batch, looked for in what is its own."""

    def __init__(self, kwargs: Mapping[str, Any], asked: Sequence[RowRequest]) -> None:
        width = max(len(one.ids) for one in asked)
        groups: dict[tuple[Any, ...], list[int]] = {}
        for row, one in enumerate(asked):
            strings = one.options.get("stop_strings") or kwargs.get("stop_strings") or ()
            strings = (strings,) if isinstance(strings, str) else tuple(strings)
            if strings:
                groups.setdefault((strings, width - len(one.ids)), []).append(row)
        self._groups = [
            (rows, padding, StopStringCriteria(kwargs["tokenizer"], list(strings)))
            for (strings, padding), rows in groups.items()
        ]
        self._at: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        if not self._at:
            self._at = [torch.tensor(rows, device=input_ids.device) for rows, _, _ in self._groups]
        stopped = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        for at, (_, padding, criteria) in zip(self._at, self._groups, strict=True):
            stopped[at] = criteria(input_ids[at, padding:], scores, **kwargs)
        return stopped


class RowEnds(StoppingCriteria):
    """Ends each row of a micro-batch at its own limit and where `others` say so, and remembers where."""

    eos_token_id = None
    """That there is such a name has `generate()` fill up what has ended, whatever ended it."""

    def __init__(self, asked: Sequence[RowRequest], others: Sequence[Any]) -> None:
        self._width = max(len(one.ids) for one in asked)
        self._most = [one.max_new_tokens for one in asked]
        self._others = others
        self._limits: torch.Tensor | None = None
        self._lengths: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        made = input_ids.shape[1] - self._width
        if self._limits is None or self._lengths is None:
            self._limits = torch.tensor(self._most, device=input_ids.device)
            self._lengths = torch.zeros_like(self._limits)
        over = self._limits <= made
        for one in self._others:
            over = over | one(input_ids, scores, **kwargs)
        self._lengths = torch.where(over & (self._lengths == 0), made, self._lengths)
        return self._lengths > 0

    @property
    def lengths(self) -> list[int]:
        """How many tokens each row had when it ended; its limit if it did not."""
        found = self._lengths.tolist() if self._lengths is not None else [0] * len(self._most)
        return [length or most for length, most in zip(found, self._most, strict=True)]


def stops_of(kwargs: Mapping[str, Any], asked: Sequence[RowRequest]) -> list[Any]:
    """What ends requests of a micro-batch beside tokens that end sequences and their limits.

    `kwargs` are the run's own arguments of `generate()`.
    """
    given = list(kwargs.get("stopping_criteria") or ())
    if kwargs.get("stop_strings") or any(one.options.get("stop_strings") for one in asked):
        given.append(RowStops(kwargs, asked))
    return given


def ends_of(kwargs: Mapping[str, Any], asked: Sequence[RowRequest]) -> RowEnds | None:
    """What ends the requests of a micro-batch; None where all of them end at one limit or at an end token."""
    others = stops_of(kwargs, asked)
    alike = len({one.max_new_tokens for one in asked}) == 1
    return None if alike and not others else RowEnds(asked, others)
