"""Rows of several micro-batches that go through the layers as one, whatever their age."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Self

import torch
from torch import nn

from engine.model.coroutine import StackEnd
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

    It takes up what its parts brought to the first layer, and hands back what comes out of the last one: a micro-batch
    all of whose requests have that, be it from several joints, goes on with its own head.
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
        first = 0
        for micro_batch, rows in self.parts:
            micro_batch.take_computed(rows, hidden[first : first + len(rows)])
            first += len(rows)
            if micro_batch.num_awaited == 0:
                _go_on(micro_batch)


def _passed(part: JointRows) -> Passed:
    at = part.micro_batch.at
    if not isinstance(at, StackEnd):
        raise RuntimeError(f"a micro-batch to be joined is not behind the layers but at {type(at).__name__}")
    one = part.micro_batch
    return Passed(at.hidden, part.rows, one.host_calls, one.width + one.step)


def _go_on(micro_batch: InFlight) -> None:
    computed, micro_batch.computed = micro_batch.computed, None
    try:
        micro_batch.resume_and_draw(computed)
    except (InputError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        micro_batch.error = error
    micro_batch.step += 1
    if micro_batch.finished:
        micro_batch.host_calls.clear()
