"""What one request of a micro-batch asks for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class TokenLogprobs(NamedTuple):
    """The logarithm of a token's probability by the model, and those of the likeliest tokens in its place."""

    token: int
    logprob: float
    likeliest: list[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class RowRequest:
    """What one request asks for: `options` are those of the arguments of `generate()` that are its own."""

    ids: list[int]
    max_new_tokens: int
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    """It draws as if it were generated alone after `torch.manual_seed(seed)`."""
    top_logprobs: int | None = None
    """For how many tokens beside the chosen one logarithms of probabilities are kept; None: not even for that one."""
    prompt_logprobs: int | None = None
    """The same of the tokens of its prompt, from the second one on."""
