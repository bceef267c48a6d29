"""A micro-batch as a coroutine: the model library's own `generate()`, stopped where a schedule may split it.

The coroutine (a greenlet) runs in the thread of the GPU lane. Hooks inside the model call `suspend` with an event that
says where it stopped and what it holds; the executor's tasks look at the event and `resume` with what it waits for.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from greenlet import getcurrent, greenlet


@dataclass(slots=True)
class LayerEntry:
    """About to run a decoder layer on `hidden`. Resume with None, or with a tensor that takes its place."""

    layer: int
    hidden: torch.Tensor


@dataclass(slots=True)
class WeightsNeeded:
    """About to use weights of `layer` that stream. Resume with None once they are in place."""

    layer: int


@dataclass(slots=True)
class CacheNeeded:
    """The model works on the whole KV cache of `layer` before attention. Resume with (keys, values), new ones included.

    Most models hand the cache straight to attention and never stop here (see `engine.model.kvcache`).
    """

    layer: int


@dataclass(slots=True)
class AttentionCall:
    """Wants attention. Resume with (output [batch, queries, heads, value_dim], weights or None).

    `key` and `value` hold what the cache's update gave the model: only the newest tokens, or all of them.
    """

    layer: int
    implementation: str  # the library's name of the attention that the model would have used
    module: torch.nn.Module
    query: torch.Tensor  # [batch, heads, queries, head_dim]
    key: torch.Tensor  # [batch, kv_heads, tokens, head_dim]
    value: torch.Tensor
    mask: torch.Tensor | None
    kwargs: dict[str, Any]
    whole_cache: bool


@dataclass(slots=True)
class ExpertsCall:
    """Wants the routed experts of `layer`, which are computed apart. Resume with what they make of the tokens."""

    layer: int
    hidden: torch.Tensor  # [tokens, hidden size]
    index: torch.Tensor  # [tokens, k]: the experts of each token
    weights: torch.Tensor  # [tokens, k]: what the output of each counts


@dataclass(slots=True)
class SumNeeded:
    """Has its rank's part of a sum over ranks. Resume with None once the sum stands in its place."""

    layer: int
    which: int  # of the two sums of a layer: behind attention, or behind the networks
    part: torch.Tensor


@dataclass(slots=True)
class StackEnd:
    """Has run the last decoder layer; what follows is the head. Resume with None, or a tensor in place of `hidden`."""

    hidden: torch.Tensor


@dataclass(slots=True)
class HeadCall:
    """About to score words, where others compute its layers in decode. Resume with what `forward` makes of `hidden`."""

    forward: Callable[[torch.Tensor], torch.Tensor]
    hidden: torch.Tensor


@dataclass(slots=True)
class Finished:
    """`generate()` has returned."""

    output: Any


class HostCall(NamedTuple):
    """A layer that runs elsewhere, which the model passes: what it calls, and with what beside the hidden state."""

    forward: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


Event = (
    LayerEntry | WeightsNeeded | CacheNeeded | AttentionCall | ExpertsCall | SumNeeded | StackEnd | HeadCall | Finished
)


class _Coroutine(greenlet):  # type: ignore[misc]
    micro_batch: "GenerateCoroutine"


@dataclass(slots=True, eq=False)
class GenerateCoroutine:
    """One micro-batch on its way through generation: `generate` is called once, in the coroutine.

    `padding` tokens stand before each request's prompt. `seed` gives it random numbers of its own, the same as if it
    were generated alone after `torch.manual_seed(seed)`; None shares the process's.
    """

    index: int
    padding: tuple[int, ...]
    generate: Callable[[], Any]
    seed: int | None = None
    at: Event | None = None
    step: int = 0
    weights_ready: bool = True  # whether the streamed weights of the layer it is in may be used
    experts_apart: bool = False  # whether it stops where the layer it is in calls its routed experts
    experts_were_apart: bool = False  # whether it has done so
    host_calls: dict[int, HostCall] = field(default_factory=dict)  # by layer, those that it passed and that are to run
    joins: bool = False  # whether others compute for it what comes after its prompts: from then on it passes all layers
    passes_layers: bool = False
    error: Exception | None = None  # why it broke, where the others go on
    cache_in_use: object = None  # in decode, the layer's cache from its update until attention
    prompt_scores: torch.Tensor | None = None  # of all positions of its prompts, until somebody takes them
    shared_output: torch.Tensor | None = None  # of shared experts that are computed apart from the layer it is in
    _coroutine: _Coroutine | None = None
    _random: list[torch.Tensor] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        return isinstance(self.at, Finished)

    @property
    def is_broken(self) -> bool:
        """Whether an error came out of what runs in it, which is over then."""
        return self._coroutine is not None and self._coroutine.dead and not self.finished

    def start(self) -> None:
        """Runs up to the entry of the first layer. Binds the coroutine to the calling thread."""
        self._coroutine = _Coroutine(lambda _: Finished(self.generate()))
        self._coroutine.micro_batch = self
        if self.seed is not None:
            with _process_random():
                torch.manual_seed(self.seed)
                self._random = _random_state()
        self.resume_and_draw()

    def pass_head(self) -> None:
        """From the end of the last layer to the next step, or to the end of generation."""
        self.resume_and_draw()
        self.step += 1

    def resume(self, value: object = None) -> None:
        """Goes on to the next event, giving `value` to where it stopped. Errors inside come out here."""
        assert self._coroutine is not None
        given, self.at = [value], None  # neither the event nor the value must outlive its use inside
        del value
        self.at = self._coroutine.switch(given)

    def resume_and_draw(self, value: object = None) -> None:
        """Like `resume`, where the model may draw random numbers."""
        if self.seed is None:
            self.resume(value)
            return
        with _process_random():
            _set_random_state(self._random)
            self.resume(value)
            self._random = _random_state()

    def ask_shared(self, hidden: torch.Tensor) -> torch.Tensor:
        """What shared experts that are computed apart make of tokens, or the memory where it will stand."""
        if self.shared_output is None:
            self.shared_output = hidden.new_empty(hidden.shape)
        return self.shared_output.view(hidden.shape)

    def put_shared(self, made: torch.Tensor) -> None:
        """They have been computed, whether the model has asked for it already or will."""
        if self.shared_output is None:
            self.shared_output = made
        else:
            self.shared_output.copy_(made.view(self.shared_output.shape))

    def abandon(self) -> None:
        """Ends an unfinished coroutine and lets go of all it holds. Only from the thread that started it."""
        coroutine, self._coroutine = self._coroutine, None
        if coroutine is not None and not coroutine.dead:
            coroutine.throw()
        if not self.finished:
            self.at = None


def current() -> GenerateCoroutine | None:
    """The micro-batch whose coroutine is running, or None outside of all."""
    running = getcurrent()
    return running.micro_batch if isinstance(running, _Coroutine) else None


def suspend(event: Event) -> Any:
    """Stops the running coroutine with `event`; returns what it is resumed with."""
    parent = getcurrent().parent
    assert parent is not None
    given: list[Any] = parent.switch(event)
    return given.pop()


def _process_random() -> contextlib.AbstractContextManager[None]:
    """Gives the process's random numbers back at the end."""
    initialized: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return torch.random.fork_rng([torch.cuda.current_device()] if initialized else [])


def _random_state() -> list[torch.Tensor]:
    accelerator = [torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    return [torch.get_rng_state(), *accelerator]


def _set_random_state(states: list[torch.Tensor]) -> None:
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.cuda.set_rng_state(state)
