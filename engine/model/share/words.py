"""A rank's share of the vocabulary: the words whose vectors it has, and those that it scores."""

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from engine.device import RankSums
from engine.model.anatomy import OwnedParameter
from engine.model.experts import with_forward
from engine.model.share.cuts import Cut, Cuts, part_of


def share_of_words(model: PreTrainedModel, sums: RankSums) -> Cuts:
    """Of the embedding and of the head, which may be one parameter."""
    rank, cuts = sums.rank, Cuts()
    for module in _ends(model):
        for name, tensor in module.named_parameters(recurse=False):
            kept = part_of(len(tensor), rank.index, rank.count)
            cuts.cuts.append(Cut(OwnedParameter(module, name, tensor), 0, (kept,)))
    return cuts


def whole_words(model: PreTrainedModel, sums: RankSums) -> Iterator[AbstractContextManager[None]]:
    """To enter before they are cut: the model looks up, and scores, all words all the same."""
    for module in _ends(model):
        count = len(next(module.parameters()))
        around = _look_up if isinstance(module, nn.Embedding) else _score
        yield with_forward(module, functools.partial(around, sums, count, module.forward))


def _ends(model: PreTrainedModel) -> Iterator[nn.Module]:
    """The embedding and the head, if they are what they mostly are."""
    first, last = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if isinstance(first, nn.Embedding):
        yield first
    if isinstance(last, nn.Linear):
        yield last


def _look_up(sums: RankSums, count: int, forward: Callable[..., torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    """What words are to the model: each rank has those that are its own, and zeros for the others."""
    own = part_of(count, sums.rank.index, sums.rank.count)
    there = (ids >= own.start) & (ids < own.stop)
    found = forward(ids.sub(own.start).clamp_(0, own.stop - own.start - 1))
    found.mul_(there.unsqueeze(-1))
    sums.add_up_words(found)
    return found


def _score(sums: RankSums, count: int, forward: Callable[..., Any], hidden: torch.Tensor) -> torch.Tensor:
    """Scores of all words, of which each rank computes some; the last one may have fewer."""
    own, width = forward(hidden), part_of(count, 0, sums.rank.count).stop
    parts = sums.gather_words(functional.pad(own, (0, width - own.shape[-1])).contiguous())
    del own
    return torch.cat(parts, -1)[..., :count]
