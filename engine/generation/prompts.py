"""What comes in: prompts as text or token ids, and arguments for `generate()`. Checked before anything is set up."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from traces.errors import InputError
from traces.files import read_toml

Prompt = str | Sequence[int]

REFUSED = read_toml(Path(__file__).with_name("refused.toml"))
"""Arguments of `generate()` that the engine cannot honour, and what they stand for."""

HARMLESS = {"num_beams": 1, "num_return_sequences": 1, "use_cache": True, "output_attentions": False}


def check_generate_kwargs(kwargs: Mapping[str, Any], model: PreTrainedModel) -> None:
    """Raises InputError for arguments, or a model's own generation settings, that the engine cannot honour."""
    for name, value in kwargs.items():
        if name in REFUSED and value is not None and value != HARMLESS.get(name):
            raise InputError(f"{name}: {value!r} asks for {REFUSED[name]}, which is not supported: leave it out")
    for name, usual in HARMLESS.items():
        own = getattr(model.generation_config, name, None)
        if own is not None and own != usual and name not in kwargs:
            raise InputError(
                f"{name}: the model's generation_config asks for {REFUSED[name]} ({name} = {own!r}), which is not "
                f"supported: give {name}={usual!r}"
            )


def prompt_ids(prompt: Prompt, number: int, tokenizer: PreTrainedTokenizerBase | None) -> list[int]:
    """Token ids of one prompt. Raises InputError that gives its `number` if it has none."""
    if isinstance(prompt, str):
        if tokenizer is None:
            raise InputError(f"prompt {number} is text, but there is no tokenizer: give one, or give token ids")
        ids = list(tokenizer(prompt)["input_ids"]) if prompt else []
    else:
        ids = list(prompt)
        if any(isinstance(token, bool) or not isinstance(token, int) or token < 0 for token in ids):
            raise InputError(f"prompt {number} holds something else than token ids: give whole numbers from 0")
    if not ids:
        raise InputError(f"prompt {number} is empty: give at least one token")
    return ids


def check_length(ids: Sequence[int], name: str, max_new_tokens: int, model: PreTrainedModel) -> None:
    """Raises InputError if one prompt does not fit the model's positions and vocabulary."""
    config = model.config.get_text_config(decoder=True)
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and len(ids) + max_new_tokens > positions:
        raise InputError(
            f"{name} has {len(ids)} tokens, which with max_new_tokens {max_new_tokens} is more than the model's "
            f"{positions} positions: shorten it by {len(ids) + max_new_tokens - positions}, or generate less"
        )
    last = config.vocab_size - 1
    if max(ids) > last:
        raise InputError(f"{name} holds the token id {max(ids)}: the model's vocabulary ends at {last}")


def pad_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> int:
    """The token that fills up shorter prompts; it is masked, so any will do."""
    eos = model.generation_config.eos_token_id
    first_eos = eos[0] if isinstance(eos, list) else eos
    found = (model.generation_config.pad_token_id, getattr(tokenizer, "pad_token_id", None), first_eos)
    return next((int(token) for token in found if token is not None), 0)
