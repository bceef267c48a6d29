"""Rows of several micro-batches that go through the layers as one, whatever their age."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Self

import torch
from torch import nn

from engine.model.coroutine import HeadCall, StackEnd
from engine.model.in_flight.calls import JoinedCalls, Passed, row_pieces
from engine.model.in_flight.micro_batch import InFlight
from engine.model.kvcache import Paged, joint_cache
from traces.errors import InputError


class JointRows(NamedTuple):
    """Some requests of a micro-batch that has passed the layers and waits at their end, by their rows in it."""

    micro_batch: InFlight
    rows: Sequence[int]


@dataclass(slots=True, eq=False, kw_only=True)
class Joint(InFlight):
    """Requests of several micro-batches in one step of decode: to tasks a micro-batch like any other.

    It takes up what its parts brought to the first layer, and hands back what comes out of the last one. Micro-batches
    all of whose requests have that, be it from several joints, have their words scored together, and go on.
    """

    parts: Sequence[JointRows] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        index: int,
        step: int,
        parts: Sequence[JointRows],
        layers: Sequence[nn.Module],
        paged: Paged,
        num_tokens: int,
        most_requests: int,
        most_tokens: int,
    ) -> Self:
        """One for a step of the schedule, whose longest request has `num_tokens`, the newest included."""
        cache = joint_cache(parts[0].micro_batch.cache, num_tokens)
        count = sum(len(part.rows) for part in parts)

        def run_layers() -> torch.Tensor:
            passed = [_passed(part) for part in parts]
            hidden = torch.cat([tensor for one in passed for tensor in row_pieces(one.hidden, one.rows)])
            calls = JoinedCalls(passed, cache, num_tokens, hidden.dtype)
            for i, layer in enumerate(layers):
                hidden = layer(hidden, **calls.of(i))
            return hidden

        return cls(
            index, (0,) * count, run_layers, cache=cache, width=1, capacity=most_tokens, entered=step - 1, step=1,
            most_requests=most_requests, paged=paged, parts=parts,
        )  # fmt: skip

    @property
    def is_broken(self) -> bool:
        """Never by what its requests bring along: that is used in the heads."""
        return False

    def pass_head(self) -> None:
        """Hands its rows back. Micro-batches that have all of theirs go on; who breaks then has an error."""
        if not isinstance(self.at, StackEnd):
            raise RuntimeError(f"micro-batch {self.index} is not behind the layers but at {type(self.at).__name__}")
        hidden = self.at.hidden
        self.resume()
        self.at = None
        self.step += 1
        first, ready = 0, list[InFlight]()
        for micro_batch, rows in self.parts:
            micro_batch.take_computed(rows, hidden[first : first + len(rows)])
            first += len(rows)
            if micro_batch.num_awaited == 0:
                ready.append(micro_batch)
        for together in _of_no_more(ready, self.most_requests or 0):
            _pass_heads(together)


def _passed(part: JointRows) -> Passed:
    at = part.micro_batch.at
    if not isinstance(at, StackEnd):
        raise RuntimeError(f"a micro-batch to be joined is not behind the layers but at {type(at).__name__}")
    one = part.micro_batch
    return Passed(at.hidden, part.rows, one.host_calls, one.width + one.step)


def _of_no_more(ready: Sequence[InFlight], requests: int) -> Iterator[list[InFlight]]:
    """Micro-batches in groups of no more requests than one may have, whose scores the device has room for."""
    group, count = list[InFlight](), 0
    for one in ready:
        if group and count + len(one.padding) > requests:
            yield group
            group, count = [], 0
        group.append(one)
        count += len(one.padding)
    if group:
        yield group


def _pass_heads(together: Sequence[InFlight]) -> None:
    """The heads of several micro-batches, whose scores are computed as one; then each chooses its own tokens."""
    for one in together:
        computed, one.computed = one.computed, None
        _go_on(one, computed)
    calls = [(one, one.at) for one in together if isinstance(one.at, HeadCall)]
    if calls:
        hidden = [call.hidden for _, call in calls]
        scores = calls[0][1].forward(torch.cat(hidden)).split_with_sizes([len(rows) for rows in hidden])
        for (one, _), mine in zip(calls, scores, strict=True):
            _go_on(one, mine)
    for one in together:
        one.step += 1
        if one.finished:
            one.host_calls.clear()


def _go_on(micro_batch: InFlight, value: torch.Tensor | None) -> None:
    """Resumes it. An error that comes out is its own."""
    try:
        micro_batch.resume_and_draw(value)
    except (InputError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        micro_batch.error = error
