"""Layers that keep a state of fixed size in place of a cache: linear attention, state spaces, short convolutions.

What a token does to the state is one of few things, whatever the name of the kind: it decays, something is read from
it, something is added. The reader of a configuration says how often the state is gone through.
"""

from dataclasses import dataclass

from sim.problem.model.attention.base import Attention, Matrix, check_at_least


@dataclass(frozen=True, slots=True)
class Recurrent(Attention):
    """One such layer. Raises InputError when a size is not possible."""

    hidden_size: int
    kind_name: str
    query_width: int
    """Numbers of one token that read the state: queries, or C of a state space."""
    memory_width: int
    """Numbers of one token that are added to it: keys and values, or B, x and the step size."""
    output_width: int
    in_weights: int
    """Multiply-accumulates of one token before the state."""
    state_numbers: int = 0
    """Of one request."""
    state_bits: int = 32
    passes: int = 2
    """Multiply-accumulates of a token with each number of the state: one to add to it, one to read it; the delta rule
    reads what is there before it adds."""
    convolved: int = 0
    """Channels of a convolution over the last tokens."""
    kernel: int = 1
    """Tokens that it looks at, the newest included."""
    chunk: int = 0
    """Tokens of a prompt that meet each other directly, as attention does, before what they say goes into the state."""
    extra_params: int = 0
    """Convolutions, decays, norms."""
    out_params: int = 0
    """What the output projection has beside its weights."""

    def __post_init__(self) -> None:
        check_at_least(self, 1, "hidden_size", "query_width", "memory_width", "output_width", "state_bits", "kernel")
        sizes = ("in_weights", "state_numbers", "passes", "convolved", "chunk", "extra_params", "out_params")
        check_at_least(self, 0, *sizes)

    @property
    def kind(self) -> str:
        return self.kind_name

    @property
    def pre_weights(self) -> int:
        return self.in_weights

    @property
    def post_weights(self) -> int:
        return self.hidden_size * self.output_width

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        into = self.in_weights // self.hidden_size
        return ("in", self.hidden_size, into), ("out", self.output_width, self.hidden_size)

    @property
    def pre_params(self) -> int:
        return self.pre_weights + self.extra_params

    @property
    def post_params(self) -> int:
        return self.post_weights + self.out_params

    @property
    def sent_query_width(self) -> int:
        return self.query_width

    @property
    def new_width(self) -> int:
        return self.memory_width

    @property
    def returned_width(self) -> int:
        return self.output_width

    @property
    def state_bytes(self) -> int:
        """The state, and the last tokens of the convolution in 16 bits."""
        return self.state_numbers * self.state_bits // 8 + 2 * self.convolved * (self.kernel - 1)

    @property
    def state_weights(self) -> int:
        return self.passes * self.state_numbers + self.convolved * self.kernel

    @property
    def prompt_state_weights(self) -> int:
        """Of a chunk's tokens a half comes before another one: each meets it as a query meets a key and a value."""
        return self.state_weights + self.chunk * (self.query_width + self.output_width) // 2

    @property
    def held_width(self) -> int:
        return 2 * (self.query_width + self.memory_width) + self.output_width
