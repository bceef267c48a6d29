"""A model as one of several ranks has it, and where in its layers ranks add up."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from engine.device import RankSums
from engine.model.anatomy import Anatomy
from engine.model.coroutine import SumNeeded, current, suspend
from engine.model.experts import with_forward
from engine.model.share.attention import AttentionShare, share_of_attention
from engine.model.share.feed_forward import BlockShare, share_of_block
from engine.model.share.styles import Styles
from engine.model.share.words import share_of_words, whole_words
from sim.schedule import EXPERTS_SUM, OUT_PROJ_SUM
from traces.errors import InputError

Around = Callable[..., Any]


@contextlib.contextmanager
def share_of_rank(model: PreTrainedModel, sums: RankSums, *, keep: bool) -> Iterator[None]:
    """While entered, the model has what one rank computes of each layer, and micro-batches stop where ranks add up.

    Without `keep` for good: nobody needs the rest any more. Raises InputError for a model that cannot be divided among
    so many ranks.
    """
    with contextlib.ExitStack() as stack:
        for words in whole_words(model, sums):
            stack.enter_context(words)
        for i, (attention, block) in enumerate(_shares(model, sums)):
            stack.enter_context(attention.cuts.made(keep=keep))
            stack.enter_context(block.cuts.made(keep=keep))
            stack.enter_context(_wrapped(attention.out, functools.partial(_project_out, i, attention.input)))
            stack.enter_context(_wrapped(block.block, functools.partial(_leave_block, i)))
        stack.enter_context(share_of_words(model, sums).made(keep=keep))
        yield


def _shares(model: PreTrainedModel, sums: RankSums) -> Iterator[tuple[AttentionShare, BlockShare]]:
    """Of each layer, all of them seen before the first one is told."""
    anatomy, rank = Anatomy.of(model), sums.rank
    styles = Styles.of(model, anatomy)
    heads = getattr(model.config.get_text_config(decoder=True), "num_attention_heads", None) or 1
    found: list[tuple[AttentionShare, BlockShare]] = []
    for i, layer in enumerate(anatomy.layers):
        attention = share_of_attention(layer, styles, rank, heads)
        block = share_of_block(layer, anatomy.experts[i], anatomy.num_experts, styles, rank)
        if attention is None or block is None:
            part = "attention" if attention is None else "experts"
            raise InputError(
                f"{rank.count} devices: the engine does not know how to divide the {part} of {type(model).__name__} "
                f"(layer {i}): run it on one"
            )
        found.append((attention, block))
    return iter(found)


def _wrapped(module: nn.Module, around: Around) -> contextlib.AbstractContextManager[None]:
    return with_forward(module, functools.partial(around, module.forward))


def _project_out(layer: int, taken: slice | None, forward: Around, hidden: torch.Tensor) -> Any:
    """The projection behind attention: a rank's part of the sum, then the sum."""
    part = forward(hidden if taken is None else hidden[..., taken])
    return part if current() is None else _added_up(layer, OUT_PROJ_SUM, part)


def _leave_block(layer: int, forward: Around, *args: Any, **kwargs: Any) -> Any:
    """The same of the networks behind it, unless each of them has been added up where it was computed."""
    made, micro_batch = forward(*args, **kwargs), current()
    if micro_batch is None or micro_batch.experts_were_apart:
        return made
    if isinstance(made, tuple):
        return _added_up(layer, EXPERTS_SUM, made[0]), *made[1:]
    return _added_up(layer, EXPERTS_SUM, made)


def _added_up(layer: int, which: int, part: torch.Tensor) -> torch.Tensor:
    part = part.contiguous()
    suspend(SumNeeded(layer, which, part))
    return part
