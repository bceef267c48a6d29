"""What one step carries: in some micro-batches requests that decode, in the others chunks of prompts."""

from dataclasses import dataclass
from typing import NamedTuple


class Decoding(NamedTuple):
    """A request that generates a token."""

    request: int
    context_tokens: int
    """KV entries that it reads, the new token's included."""
    padding_tokens: int = 0
    """Entries before them that its prompt was filled up with, which attention on the host does not read."""


class Chunk(NamedTuple):
    """Tokens `start` to `stop` - 1 of a request's prompt."""

    request: int
    start: int
    stop: int
    is_last: bool
    """Whether the prompt ends here, so that its first token comes out of this step."""
    padding_tokens: int = 0
    """Tokens before it that fill it up to the longest prompt beside it, and are computed, too."""

    @property
    def tokens(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Composition:
    """One step of a stream. Micro-batches that carry nothing are there, too: every step of a stream has as many."""

    step: int
    decoding: tuple[tuple[Decoding, ...], ...]
    prompts: tuple[tuple[Chunk, ...], ...]
    """Behind those that decode, in the order of their numbers."""
    entered: tuple[int, ...] = ()
    """Requests of which this step has the first chunk."""
    preempted: tuple[int, ...] = ()
    """Requests that gave up their blocks before this step."""
    places: tuple[int, ...] = ()
    """Where requests join together: of each micro-batch of prompts, in which one those will decode; -1 of an empty one.
    """
    ended: tuple[tuple[Decoding, ...], ...] = ()
    """Where requests join together: of each micro-batch that decodes, those who have ended, who are computed all the
    same until the last of them has.
    """

    @property
    def is_empty(self) -> bool:
        """Whether no request has anything to do in it."""
        return not any(self.decoding) and not any(self.prompts)

    @property
    def num_decoding(self) -> int:
        """Requests that decode."""
        return sum(map(len, self.decoding))

    @property
    def prompt_tokens(self) -> int:
        """Tokens of prompts."""
        return sum(chunk.tokens for chunks in self.prompts for chunk in chunks)

    @property
    def gives_tokens_to(self) -> tuple[int, ...]:
        """Requests that have one more token when the step has ended: those that decode, and whose prompt ends."""
        begun = (chunk.request for chunks in self.prompts for chunk in chunks if chunk.is_last)
        return (*(one.request for mine in self.decoding for one in mine), *begun)
