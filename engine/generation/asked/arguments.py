"""Arguments of `generate()`: which of them are honoured, and what they may be. Checked before anything is set up."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from traces.errors import InputError, nearest
from traces.files import read_toml

_TOLD = read_toml(Path(__file__).with_name("refused.toml"))

REFUSED: Mapping[str, str] = _TOLD["arguments"]
"""Arguments of `generate()` that the engine cannot honour, and what they stand for."""

REFUSED_FAMILIES: Mapping[str, str] = _TOLD["families"]
"""Families of models that the engine cannot run, and why."""

HARMLESS = {"num_beams": 1, "num_return_sequences": 1, "use_cache": True, "output_attentions": False}

BESIDE_THE_CONFIGURATION = ("logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn", "tokenizer")
"""Arguments of `generate()` that are no field of its configuration, and are honoured."""

OF_NO_CONSEQUENCE = ("transformers_version", "max_length", "max_new_tokens", "pad_token_id")
"""Fields of a configuration that change no token, or are given in another way."""

SEEDS = -(2**63), 2**64 - 1

SHARES = ("top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
POSITIVE = ("repetition_penalty", "encoder_repetition_penalty")
COUNTS = ("top_k", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_new_tokens", "min_length")


def checked_arguments(
    kwargs: Mapping[str, Any], model: PreTrainedModel | None, own: Iterable[str], tokenizer: Any = None
) -> dict[str, Any]:
    """Arguments that the engine can honour, in the form in which the library takes them.

    A `generation_config` is read as the model's own; `own` are names that the call itself takes, for those who misspell
    one. Raises InputError for arguments, or a model's own generation settings, that the engine cannot honour.
    """
    given = {**_of_configuration(kwargs.get("generation_config")), **kwargs}
    given.pop("generation_config", None)
    for name, value in given.items():
        _check_known(name, value, own)
    checked = {name: _in_range(name, value) for name, value in given.items() if name not in HARMLESS}
    if model is not None:
        checked = _with_the_models_own(checked, given, model)
    return _with_tokenizer(_greedy_at_zero(checked), tokenizer)


def check_own_arguments(
    options: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase | None, where: str
) -> dict[str, Any]:
    """The same for what one request asks for, which must be how its tokens are chosen, or its `stop_strings`."""
    allowed = _configuration_fields() - REFUSED.keys() - set(OF_NO_CONSEQUENCE) - {"eos_token_id"}
    for name, value in options.items():
        if name in REFUSED:
            raise InputError(f"{where}{name}: {value!r} asks for {REFUSED[name]}, which is not supported: leave it out")
        if name not in allowed:
            raise InputError(f"{where}{name}: not known as an option of one request{nearest(name, allowed)}")
    checked = _greedy_at_zero({name: _in_range(f"{where}{name}", value, name) for name, value in options.items()})
    if checked.get("stop_strings") and tokenizer is None:
        raise InputError(f"{where}stop_strings: they need a tokenizer, and there is none: give one, or leave them out")
    return checked


def check_seed(name: str, value: Any) -> int:
    """Refuses what is no seed of a random number generator."""
    if isinstance(value, np.integer):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not SEEDS[0] <= value <= SEEDS[1]:
        raise InputError(f"{name}: {value!r} is not allowed; give a whole number from {SEEDS[0]} to {SEEDS[1]}")
    return value


def _of_configuration(config: Any) -> dict[str, Any]:
    if config is None:
        return {}
    if not isinstance(config, GenerationConfig):
        kind = type(config).__name__
        raise InputError(f"generation_config: a {kind} is no GenerationConfig of transformers: give one")
    fields = {name: value for name, value in config.to_dict().items() if value is not None and name[:1] != "_"}
    usual = _usual_configuration()
    return {name: one for name, one in fields.items() if name not in OF_NO_CONSEQUENCE and one != usual.get(name)}


def _usual_configuration() -> dict[str, Any]:
    fields: dict[str, Any] = GenerationConfig().to_dict()  # type: ignore[no-untyped-call]
    return {name: value for name, value in fields.items() if name[:1] != "_"}


def _configuration_fields() -> set[str]:
    return set(_usual_configuration())


def _check_known(name: str, value: Any, own: Iterable[str]) -> None:
    if name in REFUSED:
        if value is not None and value != HARMLESS.get(name):
            raise InputError(f"{name}: {_shown(value)} asks for {REFUSED[name]}, which is not supported: leave it out")
        return
    known = [*_configuration_fields(), *BESIDE_THE_CONFIGURATION]
    if name not in known:
        raise InputError(f"{name}: unknown argument{nearest(name, {*own, *known})}")


def _shown(value: Any) -> str:
    """A value in a line: what it is, where it is more than that."""
    return repr(value) if isinstance(value, int | float | str | bool) else f"a {type(value).__name__}"


def _in_range(told: str, value: Any, name: str = "") -> Any:
    """A number in the type that the library asks for. Raises InputError for one that nothing can be done with."""
    name = name or told
    value = value.item() if isinstance(value, np.generic) else value
    if value is None:
        return None
    if name == "temperature":
        return _number(told, value, lambda x: x >= 0, "a number from 0, which takes the likeliest token, up")
    if name in SHARES:
        return _number(told, value, lambda x: x <= 1 and x >= 0, "a number from 0 to 1")
    if name in POSITIVE:
        return _number(told, value, lambda x: x > 0, "a number above 0")
    if name in COUNTS and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise InputError(f"{told}: {_shown(value)} is not allowed; give a whole number from 0")
    if name in ("do_sample", "renormalize_logits", "remove_invalid_values") and not isinstance(value, bool):
        raise InputError(f"{told}: {_shown(value)} is not allowed; give true or false")
    if name == "stop_strings":
        _check_strings(told, value)
    if name == "eos_token_id":
        return _tokens(told, value)
    return value


def _number(name: str, value: Any, allowed: Callable[[float], bool], what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not allowed(value):
        raise InputError(f"{name}: {_shown(value)} is not allowed; give {what}")
    return float(value)


def _check_strings(name: str, value: Any) -> None:
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, list | tuple) or not all(isinstance(one, str) and one for one in strings):
        raise InputError(f"{name}: {_shown(value)} is not allowed; give a text, or a list of texts, none of them empty")


def _tokens(name: str, value: Any) -> Any:
    given = value.tolist() if isinstance(value, torch.Tensor | np.ndarray) else value
    for token in given if isinstance(given, list | tuple) else [given]:
        if isinstance(token, bool) or not isinstance(token, int) or token < 0:
            raise InputError(f"{name}: {_shown(token)} is no token id; give a whole number from 0, or a list of them")
    return given


def _greedy_at_zero(given: dict[str, Any]) -> dict[str, Any]:
    if given.get("temperature") != 0:
        return given
    return {name: value for name, value in given.items() if name != "temperature"} | {"do_sample": False}


def _with_the_models_own(checked: dict[str, Any], given: Mapping[str, Any], model: PreTrainedModel) -> dict[str, Any]:
    """Refuses what the model itself asks for and nobody overrules; takes over its stop strings."""
    for name, usual in HARMLESS.items():
        own = getattr(model.generation_config, name, None)
        if own is not None and own != usual and name not in given:
            raise InputError(
                f"{name}: the model's generation_config asks for {REFUSED[name]} ({name} = {own!r}), which is not "
                f"supported: give {name}={usual!r}"
            )
    harmless = {name: given[name] for name in HARMLESS if name in given}
    own_stops = getattr(model.generation_config, "stop_strings", None)
    stops = {"stop_strings": own_stops} if own_stops and "stop_strings" not in checked else {}
    return {**stops, **harmless, **checked}


def _with_tokenizer(checked: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    found = checked.pop("tokenizer", None) or tokenizer
    if checked.get("stop_strings") and found is None:
        raise InputError("stop_strings: they need a tokenizer, and there is none: give one, or leave them out")
    return checked if found is None else {**checked, "tokenizer": found}


def names_of(call: Callable[..., Any]) -> list[str]:
    """The names of what a call takes."""
    return [name for name, one in inspect.signature(call).parameters.items() if one.kind is not one.VAR_KEYWORD]
