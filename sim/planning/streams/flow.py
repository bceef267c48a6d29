"""What the requests of a stream are on average: what they hold, and what of their prompts keeps so many decoding."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from sim.admission import KvLayers, RequestStream


@dataclass(frozen=True, slots=True)
class Flow:
    """Means over requests, or over all steps in which they decode."""

    num_requests: int
    generated_tokens: int
    """Of all of them."""
    prompt_tokens: float
    prompt_tokens_squared: float
    decode_steps: float
    """Steps in which a request decodes: it has its first token from its prompt's last one."""
    context_tokens: float
    """KV entries that a request reads when it decodes, the new token's included."""
    promised_tokens: float
    """KV entries that are set apart for a request while it is in, until it may generate no more."""
    longest_tokens: int
    """The most that any may have."""

    @classmethod
    def of(cls, stream: RequestStream) -> "Flow":
        """Requests that generate for long count for more, as they are met more often."""
        numbers = [(one.prompt_tokens, one.most_tokens, one.generated_tokens) for one in stream.requests]
        prompt, most, generated = np.array(numbers, dtype=float).T
        steps = generated - 1
        context = (steps * (prompt + generated / 2)).sum() / max(1.0, steps.sum())
        promised = (generated * (prompt + most - generated / 2)).sum() / generated.sum()
        return cls(
            len(numbers),
            stream.generated_tokens,
            float(prompt.mean()),
            float((prompt**2).mean()),
            float(steps.mean()),
            float(context),
            float(promised),
            int((prompt + most - 1).max()),
        )

    def prompt_tokens_beside(self, num_running: float) -> float:
        """Tokens of prompts a step with which as many requests enter as end: each has a step for its prompt, too."""
        return max(1.0, num_running) * self.prompt_tokens / (self.decode_steps + 1)

    def blocks(self, layers: Sequence[KvLayers], block_tokens: int) -> float:
        """Blocks of KV cache that a request holds, of which the last one is half full, if it is not a full window's."""
        whole = self.promised_tokens / block_tokens + 0.5
        return sum(
            units * (whole if window is None else min(whole, ceil(window / block_tokens))) for units, window in layers
        )
