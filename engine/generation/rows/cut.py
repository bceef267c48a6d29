"""A batch cut into micro-batches, and its results put back into the order of its requests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from engine.generation.rows.choosing import Choosing, choosing_for
from engine.generation.rows.ending import RowEnds, ends_of
from engine.generation.rows.request import RowRequest, TokenLogprobs
from engine.tasks import MicroBatchAsked


def by_length(lengths: Sequence[int]) -> list[int]:
    """The order in which requests are cut into micro-batches: the longest prompts first, so that few are padded."""
    return sorted(range(len(lengths)), key=lambda i: -lengths[i])


@dataclass(frozen=True, slots=True)
class RowsOfMicroBatch:
    """The requests of a micro-batch: `numbers` are theirs in the batch."""

    numbers: list[int]
    asked: list[RowRequest]
    choosing: Choosing | None
    ends: RowEnds | None

    @classmethod
    def of(
        cls, model: PreTrainedModel, kwargs: Mapping[str, Any], batch: Sequence[RowRequest], numbers: list[int]
    ) -> "RowsOfMicroBatch":
        """Those requests of a batch; `kwargs` are the run's own arguments of `generate()`."""
        asked = [batch[i] for i in numbers]
        return cls(numbers, asked, choosing_for(model, kwargs, asked), ends_of(kwargs, asked))

    @property
    def for_generate(self) -> MicroBatchAsked:
        """What is run."""
        others: dict[str, Any] = {"max_new_tokens": max(one.max_new_tokens for one in self.asked), "tokenizer": None}
        if self.choosing is not None:
            others |= self.choosing.arguments
        if self.ends is not None:
            others |= {"stop_strings": None, "stopping_criteria": [self.ends]}
        return MicroBatchAsked([one.ids for one in self.asked], others, self.asked[0].seed)

    def own_parts(self, sequences: Sequence[list[int]]) -> list[list[int]]:
        """Of what was generated for it, what each request asked for."""
        most = [one.max_new_tokens for one in self.asked] if self.ends is None else self.ends.lengths
        return [sequence[:length] for sequence, length in zip(sequences, most, strict=True)]

    def logprobs(self, row: int, length: int) -> list[TokenLogprobs] | None:
        """Of a request's first tokens, if it asked for them."""
        if self.choosing is None or self.asked[row].top_logprobs is None:
            return None
        return self.choosing.logprobs(row)[:length]

    def prompt_logprobs(self, row: int) -> list[TokenLogprobs] | None:
        """Of a request's prompt, if it asked for them."""
        if self.choosing is None or self.asked[row].prompt_logprobs is None:
            return None
        return self.choosing.prompt_logprobs(row)


def cut_up(
    model: PreTrainedModel, kwargs: Mapping[str, Any], batch: Sequence[RowRequest], size: int
) -> list[RowsOfMicroBatch]:
    """A batch cut into micro-batches of `size`, those of similar length together."""
    order = by_length([len(one.ids) for one in batch])
    starts = range(0, len(order), size)
    return [RowsOfMicroBatch.of(model, kwargs, batch, order[start : start + size]) for start in starts]
