"""How each request's next token is chosen: as if it were generated alone, whatever its company.

`generate()` of a micro-batch takes the highest score. What a request asks for beside that, a temperature or a penalty,
is applied here to its rows without their padding, by the library's own processors, and each row draws for itself.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import LogitsProcessor, PreTrainedModel

from engine.generation.rows.prompt_scores import EVERY_POSITION, prompt_logprobs
from engine.generation.rows.request import RowRequest, TokenLogprobs
from sim.cost import CHOSEN_AT_ONCE

NEUTRAL: dict[str, Any] = {
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    **dict.fromkeys(("min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")),
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "no_repeat_ngram_size")),
    **dict.fromkeys(("encoder_no_repeat_ngram_size", "sequence_bias", "bad_words_ids", "min_new_tokens")),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values", "suppress_tokens")),
    **dict.fromkeys(("exponential_decay_length_penalty", "begin_suppress_tokens", "watermarking_config")),
    "renormalize_logits": None,
    "min_length": 0,
    "prefix_allowed_tokens_fn": None,
}
"""Arguments with which `generate()` takes the highest score as it comes."""

GIVEN_ELSEWHERE = ("tokenizer", "stop_strings", "stopping_criteria")
"""Arguments that say where requests end, not how their tokens are chosen."""


class Asks(Protocol):
    """A request, as far as it says how its tokens are chosen."""

    @property
    def options(self) -> Mapping[str, Any]:
        """Arguments of `generate()`."""
        ...

    @property
    def top_logprobs(self) -> int | None:
        """For how many tokens probabilities are told; None: not even for its own."""
        ...


class Choosing(LogitsProcessor):
    """Chooses the next token of each row of a micro-batch, and leaves `generate()` no other."""

    supports_continuous_batching = False

    def __init__(self, model: PreTrainedModel, kwargs: Mapping[str, Any], asked: Sequence[RowRequest]) -> None:
        self._model, self._kwargs, self._asked = model, kwargs, asked
        self._groups: list[_Alike] = []
        self._kept: list[list[tuple[torch.Tensor, ...]]] = [[] for _ in asked]
        self._of_prompts: list[list[tuple[torch.Tensor, ...]]] = [[] for _ in asked]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """`scores` that are all minus infinity but for the token that is chosen."""
        if not self._groups:
            self._groups = list(self._made(scores.device))
            if self._scores_prompts:
                self._of_prompts = prompt_logprobs(self._asked)
        chosen = torch.empty(len(self._asked), dtype=torch.long, device=scores.device)
        for group in self._groups:
            ids, mine = input_ids[group.at, group.padding :], scores[group.at]
            tokens = chosen[group.at] = group.choose(ids, mine)
            if group.top_logprobs is not None:
                self._keep(group, mine, tokens)
        return scores.fill_(-torch.inf).scatter_(1, chosen[:, None], 0.0)

    @property
    def arguments(self) -> dict[str, Any]:
        """What `generate()` is given beside the arguments of the run, over which it goes."""
        return {**NEUTRAL, "logits_processor": [self], **(EVERY_POSITION if self._scores_prompts else {})}

    @property
    def _scores_prompts(self) -> bool:
        return any(one.prompt_logprobs is not None for one in self._asked)

    def logprobs(self, row: int) -> list[TokenLogprobs]:
        """Of the tokens of a row, in order, those after its end included."""
        return _told(self._kept[row])

    def prompt_logprobs(self, row: int) -> list[TokenLogprobs]:
        """Of the tokens of a row's prompt, from the second one on."""
        return _told(self._of_prompts[row])

    def _keep(self, group: "_Alike", scores: torch.Tensor, tokens: torch.Tensor) -> None:
        assert group.top_logprobs is not None
        every = scores.log_softmax(-1)
        values, likeliest = every.topk(group.top_logprobs)
        own = every.gather(1, tokens[:, None])[:, 0]
        for i, row in enumerate(group.rows):
            self._kept[row].append((tokens[i], own[i], likeliest[i], values[i]))

    def _made(self, device: torch.device) -> Iterator["_Alike"]:
        width = max(len(one.ids) for one in self._asked)
        groups: dict[tuple[Any, ...], list[int]] = {}
        for row, one in enumerate(self._asked):
            key = (repr(sorted(one.options.items())), one.max_new_tokens, width - len(one.ids), one.top_logprobs)
            groups.setdefault(key, []).append(row)
        for rows in groups.values():
            for start in range(0, len(rows), CHOSEN_AT_ONCE):
                some = rows[start : start + CHOSEN_AT_ONCE]
                yield _Alike.of(self._model, self._kwargs, self._asked, some, device)


def _told(kept: Sequence[tuple[torch.Tensor, ...]]) -> list[TokenLogprobs]:
    return [
        TokenLogprobs(int(token), float(at), list(zip(likeliest.tolist(), values.tolist(), strict=True)))
        for token, at, likeliest, values in kept
    ]


@dataclass(frozen=True, slots=True)
class _Alike:
    """Rows of a micro-batch that ask for the same and have as much padding."""

    rows: list[int]
    at: Any
    """The same as an index of tensors."""
    padding: int
    processors: Any
    draws: list[torch.Generator]
    """What each of them draws from; none if they do not."""
    top_logprobs: int | None

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        kwargs: Mapping[str, Any],
        asked: Sequence[RowRequest],
        rows: list[int],
        device: torch.device,
    ) -> "_Alike":
        first = asked[rows[0]]
        config, processors = processors_of(model, {**kwargs, **first.options}, first, device)
        draws = []
        for row in rows if config.do_sample else ():
            draws.append(torch.Generator(device))
            draws[-1].manual_seed(asked[row].seed or 0)
        stop = rows[-1] + 1
        at = slice(rows[0], stop) if rows == [*range(rows[0], stop)] else torch.tensor(rows, device=device)
        padding = max(len(one.ids) for one in asked) - len(first.ids)
        return cls(rows, at, padding, processors, draws, first.top_logprobs)

    def choose(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The next token of each."""
        if self.top_logprobs is not None:
            scores = scores.clone()  # processors may write into it, and it is still to be read
        scores = self.processors(ids, scores)
        if not self.draws:
            return scores.argmax(-1)
        odds = scores.softmax(-1)
        drawn = [torch.multinomial(odds[i : i + 1], 1, generator=draw) for i, draw in enumerate(self.draws)]
        return torch.cat(drawn)[:, 0]


def processors_of(model: Any, options: Mapping[str, Any], asked: RowRequest, device: torch.device) -> tuple[Any, Any]:
    """The configuration that `generate()` would have for one request alone, and its processors of scores."""
    given = {name: value for name, value in options.items() if name not in GIVEN_ELSEWHERE}
    own, allowed = given.pop("logits_processor", None), given.pop("prefix_allowed_tokens_fn", None)
    config, _ = model._prepare_generation_config(None, **given)
    num_ids = len(asked.ids)
    config.max_length = num_ids + asked.max_new_tokens
    if config.min_new_tokens is not None:
        config.min_length = num_ids + config.min_new_tokens
    model._prepare_special_tokens(config, True, device=device, batch_size=1)
    prompt = torch.tensor([asked.ids], device=device)
    processors = model._get_logits_processor(
        generation_config=config,
        input_ids_seq_length=num_ids,
        encoder_input_ids=prompt,
        prefix_allowed_tokens_fn=allowed,
        logits_processor=own,
        device=device,
        model_kwargs={},
    )
    return config, processors


def samples(model: Any, options: Mapping[str, Any]) -> bool:
    """Whether `generate()` would draw with these arguments."""
    asked = options.get("do_sample")
    return bool(model.generation_config.do_sample if asked is None else asked)


def choosing_for(model: PreTrainedModel, kwargs: Mapping[str, Any], asked: Sequence[RowRequest]) -> Choosing | None:
    """Who chooses for the requests of a micro-batch; None where the highest score is all that anybody asks for.

    `kwargs` are the run's own arguments of `generate()`.
    """
    scores_prompts = any(one.prompt_logprobs is not None for one in asked)
    return Choosing(model, kwargs, asked) if scores_prompts or chooses(model, kwargs, asked) else None


def chooses(model: PreTrainedModel, kwargs: Mapping[str, Any], asked: Iterable[Asks]) -> bool:
    """Whether anybody asks for more than the highest score."""
    own = any(one.options.keys() & NEUTRAL.keys() or one.top_logprobs is not None for one in asked)
    return own or samples(model, kwargs) or _processes(model, kwargs)


def _processes(model: PreTrainedModel, kwargs: Mapping[str, Any]) -> bool:
    """Whether scores would be changed for everybody, which may depend on how long a request is with its padding."""
    usual = {name: getattr(model.generation_config, name, None) for name in NEUTRAL}
    asked = {name: kwargs.get(name, value) for name, value in usual.items()}
    return any(value not in (None, False, NEUTRAL[name]) for name, value in asked.items())
