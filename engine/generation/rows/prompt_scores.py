"""How likely a prompt's own tokens are: the model scores every position in prefill, and `generate()` drops all but one.

A micro-batch that asks for them has the model score all positions (`logits_to_keep`), which takes positions × words
numbers on the device beside what is planned.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from engine.generation.rows.request import RowRequest
from engine.model import current

EVERY_POSITION: dict[str, Any] = {"logits_to_keep": 0}
"""The argument of `generate()` with which the model scores all positions of a prompt."""

AT_ONCE = 128
"""So many positions become logarithms of probabilities at a time: in 32 bits that takes more than their scores."""


@contextlib.contextmanager
def kept_scores(model: PreTrainedModel) -> Iterator[None]:
    """While entered, a micro-batch keeps the scores of its prompts until they are asked for."""

    def keep(_: torch.nn.Module, __: Any, output: Any) -> Any:
        micro_batch = current()
        if micro_batch is not None and micro_batch.step == 0 and output.logits.shape[1] > 1:
            micro_batch.prompt_scores = output.logits
            output.logits = output.logits[:, -1:]
        return output

    hook = model.register_forward_hook(keep)
    try:
        yield
    finally:
        hook.remove()


def prompt_logprobs(asked: Sequence[RowRequest]) -> list[list[tuple[torch.Tensor, ...]]]:
    """Of each row that asks for it, what follows each position of its prompt but the last: see `TokenLogprobs`."""
    micro_batch = current()
    scores = None if micro_batch is None else micro_batch.prompt_scores
    if micro_batch is None or scores is None:  # prompts of one token, after which nothing of theirs comes
        return [[] for _ in asked]
    micro_batch.prompt_scores = None
    width = scores.shape[1]
    return [_of_row(row[width - len(one.ids) :], one) for row, one in zip(scores, asked, strict=True)]


def _of_row(scores: torch.Tensor, asked: RowRequest) -> list[tuple[torch.Tensor, ...]]:
    if asked.prompt_logprobs is None:
        return []
    follows = torch.tensor(asked.ids[1:], device=scores.device)
    found: list[tuple[torch.Tensor, ...]] = []
    for start in range(0, len(follows), AT_ONCE):
        tokens = follows[start : start + AT_ONCE]
        every = scores[start : start + len(tokens)].float().log_softmax(-1)
        values, likeliest = every.topk(asked.prompt_logprobs)
        found += zip(tokens, every.gather(1, tokens[:, None])[:, 0], likeliest, values, strict=True)
    return found
