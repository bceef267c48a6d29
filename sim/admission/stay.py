"""One request while it is in: how far its prompt is, and what it will hold in each step until it may go no further."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from sim.admission.composition import Chunk, Decoding
from sim.admission.ledger import Counts, Promise
from sim.admission.requests import StreamedRequest
from sim.admission.rules import AdmissionRules

NOWHERE = -1


@dataclass(slots=True)
class Stay:
    """From the step in which a request enters to the one in which it ends, or is preempted."""

    request: StreamedRequest
    generated: int
    """Tokens that it has; those of an earlier stay are part of the prompt that is computed anew."""
    lane: int
    """The micro-batch that takes its chunks, among those that take prompts."""
    promise: Promise
    """The blocks that it holds if it generates all that it may, or those of all that it joins."""
    place: int = NOWHERE
    """The micro-batch in which it will decode, where that is known when it enters."""
    padding_tokens: int = 0
    """What its prompt is filled up with."""
    prompt_tokens: int = field(init=False)
    prefilled: int = 0
    micro_batch: int = NOWHERE
    """Where it decodes."""

    def __post_init__(self) -> None:
        self.prompt_tokens = self.request.prompt_tokens + self.generated

    @property
    def is_prefilled(self) -> bool:
        return self.prefilled == self.prompt_tokens

    @property
    def context_tokens(self) -> int:
        """KV entries that its next token reads, if it decodes."""
        return self.request.prompt_tokens + self.generated

    def next_chunk(self, room: int) -> Chunk:
        """As much of its prompt as there is room for, which counts as computed then."""
        start, self.prefilled = self.prefilled, min(self.prompt_tokens, self.prefilled + room)
        return Chunk(self.request.id, start, self.prefilled, self.is_prefilled, self.padding_tokens)


def decodings(stays: Iterable[Stay]) -> tuple[Decoding, ...]:
    """Their part of a step that decodes them, all at once: each step of a long stream asks for hundreds."""
    return tuple(
        [Decoding(one.request.id, one.request.prompt_tokens + one.generated, one.padding_tokens) for one in stays]
    )


def planned_blocks(rules: AdmissionRules, prompt_tokens: int, most_tokens: int, first_room: int) -> tuple[Counts, int]:
    """Blocks in each step of a request that enters now, and in how many of these steps its prompt is computed.

    The first chunk has so much room, the others that of a whole chunk. The last token needs no entry of its own.
    """
    later = -(-max(0, prompt_tokens - first_room) // rules.prefill_chunk)
    chunks = np.minimum(prompt_tokens, first_room + np.arange(later + 1) * rules.prefill_chunk)
    tokens = np.concatenate([chunks, prompt_tokens + np.arange(1, most_tokens)])
    return rules.blocks_of(tokens), later + 1
