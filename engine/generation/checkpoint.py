"""Models and tokenizers from a folder or a hub: safetensors only, and no code from elsewhere unless asked for."""

from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from traces.errors import InputError


def load_model(name_or_path: str | Path, dtype: str = "auto", trust_remote_code: bool = False) -> PreTrainedModel:
    """The model in host memory, ready to generate. Raises InputError if it cannot be loaded."""
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(name_or_path), dtype=dtype, use_safetensors=True, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # the library raises whatever its parts raise, SafetensorError among them
        raise InputError(_told("model", name_or_path, error)) from error
    loaded: PreTrainedModel = model.eval()  # type: ignore[no-untyped-call]
    return loaded


def load_tokenizer(name_or_path: str | Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model. Raises InputError if there is none."""
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(str(name_or_path), trust_remote_code=trust_remote_code)
    except Exception as error:
        raise InputError(_told("tokenizer", name_or_path, error)) from error
    loaded: PreTrainedTokenizerBase = tokenizer
    return loaded


def find_tokenizer(name_or_path: str | Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase | None:
    """The tokenizer beside a model, or None if there is none."""
    try:
        return load_tokenizer(name_or_path, trust_remote_code)
    except InputError:
        return None


def _told(what: str, name: str | Path, error: Exception) -> str:
    reason = str(error).strip().splitlines()
    return (
        f"{what} {str(name)!r} cannot be loaded: {type(error).__name__}: {reason[0] if reason else 'no reason given'}; "
        f"give a local folder or a hub id with a config.json and sound *.safetensors files"
    )
