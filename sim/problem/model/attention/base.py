"""What every kind of attention answers: what it stores, what it keeps of tokens, and what it computes.

One multiply-accumulate is 2 FLOPs; "weights" are multiply-accumulates of one token, "params" what is stored. A kind
says its widths; what follows from them for so many tokens is the same for all and is here.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

from sim.problem.model.attention.window import within_window
from traces.errors import InputError


def check_at_least(owner: object, minimum: float, *names: str) -> None:
    """Refuse a field below `minimum`; a field that is None is absent and passes."""
    for name in names:
        value = getattr(owner, name)
        if value is not None and not value >= minimum:
            raise InputError(f"{type(owner).__name__}.{name} must be at least {minimum:g}, got {value}")


class Keeping(NamedTuple):
    """How many entries a cache keeps of a context, and how many of them a query attends to.

    A context is given as the tokens of so many requests together.
    """

    window: int | None = None
    """Of a request's tokens the last so many have an entry each; None is all of them."""
    stride: int | None = None
    """Every so many tokens have one more entry, which stands for all of them."""
    top_k: int | None = None
    """Entries that a query attends to, chosen by an index: of all, or where there is a stride of its entries."""
    pool: int = 1
    """Entries that share a key of the index."""

    def kept(self, context: int, requests: int) -> int:
        """Entries in the cache."""
        return self._near(context, requests) + self.far(context)

    def attended(self, context: int, requests: int) -> int:
        """Entries that the newest token of each request attends to."""
        near, far = self._near(context, requests), self.far(context)
        if self.top_k is None:
            return near + far
        most = self.top_k * requests
        return near + min(far, most) if self.stride else min(near, most)

    def indexed(self, context: int, requests: int) -> int:
        """Keys of an index."""
        return (self.far(context) if self.stride else self._near(context, requests)) // self.pool

    def pairs(self, tokens: int, tokens_squared: int) -> float:
        """Pairs of a token of a prompt and an entry that it attends to; of several prompts the sums of both."""
        near = tokens_squared / 2 if self.window is None else min(tokens_squared / 2, tokens * self.window)
        far = tokens_squared / 2 / self.stride if self.stride else 0.0
        if self.top_k is None:
            return near + far
        most = tokens * self.top_k
        return near + min(far, most) if self.stride else min(near, most)

    def _near(self, context: int, requests: int) -> int:
        return int(within_window(context, self.window and self.window * requests))

    def far(self, context: int) -> int:
        """Entries that stand for several tokens each."""
        return context // self.stride if self.stride else 0


EVERYTHING = Keeping()


Matrix = tuple[str, int, int]
"""What checkpoints call it (q, k, v, o and the like), its inputs and its outputs."""


class Attention(ABC):
    """The token mixer of one layer, of whatever kind. A kind that says nothing of a property has none of it."""

    __slots__ = ()
    hidden_size: int

    @property
    @abstractmethod
    def kind(self) -> str:
        """What people call it."""

    @property
    @abstractmethod
    def pre_weights(self) -> int:
        """Multiply-accumulates of one token before it meets others."""

    @property
    @abstractmethod
    def post_weights(self) -> int:
        """Multiply-accumulates of one token afterwards: the output projection."""

    @property
    @abstractmethod
    def pre_params(self) -> int: ...

    @property
    @abstractmethod
    def post_params(self) -> int: ...

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """The large ones of its parameters; all else stays as it was trained where a checkpoint is quantised."""
        return ()

    @property
    def idle_params(self) -> int:
        """Of all parameters those that one token does not use."""
        return 0

    @property
    @abstractmethod
    def sent_query_width(self) -> int:
        """Numbers of one token that ask: its query, as attention over the cache takes it."""

    @property
    @abstractmethod
    def new_width(self) -> int:
        """Numbers of one token that are remembered: what goes into the cache, or into the state."""

    @property
    @abstractmethod
    def returned_width(self) -> int:
        """Numbers of one token that come back."""

    @property
    def keeping(self) -> Keeping:
        return EVERYTHING

    @property
    def window(self) -> int | None:
        """Tokens that a query looks back on; None is all of them."""
        return self.keeping.window

    @property
    def cached_width(self) -> int:
        """Numbers that the cache keeps in each of its entries; 0 where there is no cache."""
        return 0

    def cache_copies(self, num_devices: int) -> float:
        """How often devices that share each tensor have the cache all together: more than once where heads are few."""
        return 1.0

    @property
    def undivided_params(self) -> int:
        """Of all parameters those that such devices have each for itself: what is the same for all heads."""
        return 0

    @property
    def index_key_dim(self) -> int:
        """Numbers that an index keeps of each entry it chooses from."""
        return 0

    @property
    def state_bytes(self) -> int:
        """What is kept of a request whatever its context."""
        return 0

    @property
    def pair_width(self) -> int:
        """Multiply-accumulates of a query with one entry of the cache, in decode."""
        return 0

    @property
    def prompt_pair_width(self) -> int:
        """The same in prefill."""
        return self.pair_width

    @property
    def index_pair_width(self) -> int:
        """Multiply-accumulates of an index's query with one key."""
        return 0

    @property
    def state_weights(self) -> int:
        """Multiply-accumulates of one token with the state."""
        return 0

    @property
    def prompt_state_weights(self) -> int:
        """The same in prefill, where tokens of a chunk meet each other too."""
        return self.state_weights

    @property
    @abstractmethod
    def held_width(self) -> int:
        """Numbers that a token of a prompt holds at the widest moment, beside its hidden state."""

    @property
    def scored_heads(self) -> int:
        """Heads whose matrices of scores are held as a whole, because no kernel spares them."""
        return 0

    @property
    def joins_cache(self) -> bool:
        """Whether a cache in two pieces is put together before attention."""
        return False

    @property
    def expanded_width(self) -> int:
        """Numbers that are made of each token of the cache in decode, before it is attended to."""
        return 0

    @property
    def softmax_heads(self) -> int:
        """Query heads that attend."""
        return 0

    @property
    def group(self) -> float:
        """Query heads that share a head of the cache."""
        return 1.0

    def decode_flops(self, context: int, requests: float) -> float:
        """What the newest tokens of so many requests compute with a cache of that many tokens, all together."""
        attended = self.keeping.attended(context, round(requests))
        indexed = self.keeping.indexed(context, round(requests)) if self.index_pair_width else 0
        return 2.0 * (attended * self.pair_width + indexed * self.index_pair_width + requests * self.state_weights)

    def prompt_flops(self, tokens: int, tokens_squared: int) -> float:
        """What prompts of so many tokens compute with each other: the sum of their lengths, and of their squares."""
        pairs = self.keeping.pairs(tokens, tokens_squared) * self.prompt_pair_width
        indexed = tokens_squared / 2 / ((self.keeping.stride or 1) * self.keeping.pool) * self.index_pair_width
        return 2.0 * (pairs + indexed + tokens * self.prompt_state_weights)
