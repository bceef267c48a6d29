"""Models and tokenizers from a folder or a hub: safetensors only, and no code from elsewhere unless asked for."""

from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from traces.errors import InputError


def load_model(name_or_path: str | Path, dtype: str = "auto", trust_remote_code: bool = False) -> PreTrainedModel:
    """The model in host memory, ready to generate. Raises InputError if it cannot be loaded."""
    options = {"dtype": dtype, "use_safetensors": True, "trust_remote_code": trust_remote_code}
    model: PreTrainedModel = _loaded("model", AutoModelForCausalLM, name_or_path, **options)
    return model.eval()  # type: ignore[no-any-return, no-untyped-call]


def load_tokenizer(name_or_path: str | Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model. Raises InputError if there is none."""
    tokenizer: PreTrainedTokenizerBase = _loaded(
        "tokenizer", AutoTokenizer, name_or_path, trust_remote_code=trust_remote_code
    )
    return tokenizer


def find_tokenizer(name_or_path: str | Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase | None:
    """The tokenizer beside a model, or None if there is none."""
    try:
        return load_tokenizer(name_or_path, trust_remote_code)
    except InputError:
        return None


def _loaded(what: str, kind: Any, name: str | Path, **options: Any) -> Any:
    try:
        return kind.from_pretrained(str(name), **options)
    except Exception as error:  # the library raises whatever its parts raise, SafetensorError among them
        reason = next(iter(str(error).strip().splitlines()), "no reason given")
        raise InputError(
            f"{what} {str(name)!r} cannot be loaded: {type(error).__name__}: {reason}; "
            f"give a local folder or a hub id with a config.json and sound *.safetensors files"
        ) from error
