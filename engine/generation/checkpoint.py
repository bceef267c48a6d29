"""Models and tokenizers from a folder or a hub: safetensors only, and no code from elsewhere unless asked for."""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from traces.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from engine.device import Device


@dataclass(frozen=True, slots=True)
class ModelAsked:
    """A model that is still to be loaded, by each of several processes, or to be known without its weights."""

    name: str | Path
    dtype: str = "auto"
    trust_remote_code: bool = False

    def load(self, device: "Device | None" = None) -> "PreTrainedModel":
        """The model in host memory. Raises InputError if it cannot be loaded."""
        return load_model(self.name, self.dtype, self.trust_remote_code, device)

    def without_weights(self) -> "PreTrainedModel":
        """The model with its configuration, its generation settings and its dtype, and no numbers."""
        import torch
        from transformers import AutoModelForCausalLM, GenerationConfig

        config = load_config(self.name, self.trust_remote_code)
        dtype = getattr(torch, self.dtype, None) if self.dtype != "auto" else config.dtype or torch.float32
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                config, dtype=dtype, trust_remote_code=self.trust_remote_code
            )
        with contextlib.suppress(OSError):  # it has none of its own
            model.generation_config = GenerationConfig.from_pretrained(str(self.name))
        return model.eval()  # type: ignore[no-any-return, no-untyped-call]


def add_model(parser: Any) -> None:
    """Add the options that say which model a command uses to a parser or a group of it."""
    parser.add_argument("--model", required=True, help="a folder with a model, or a hub id")
    parser.add_argument("--dtype", default="auto", help="of the loaded weights (default: the checkpoint's)")
    parser.add_argument("--trust-remote-code", action="store_true", help="let the checkpoint bring model code")


def model_of(args: argparse.Namespace, device: "Device | None" = None) -> "PreTrainedModel":
    """The model that is asked for, in host memory. Raises InputError if it cannot be loaded."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # one bar is enough: ours
    return model_asked(args).load(device)


def model_asked(args: argparse.Namespace) -> ModelAsked:
    """The same, still to be loaded."""
    return ModelAsked(args.model, args.dtype, args.trust_remote_code)


def load_model(
    name_or_path: str | Path, dtype: str = "auto", trust_remote_code: bool = False, device: "Device | None" = None
) -> "PreTrainedModel":
    """The model in host memory, ready to generate. Raises InputError if it cannot be loaded.

    With `auto` it has the checkpoint's type, or where `device` does not compute in that one, float32, and stderr says
    so: a half-precision type of another range might overflow, and nobody would notice.
    """
    import torch

    from engine.device import return_freed_memory

    options = {"dtype": dtype, "use_safetensors": True, "trust_remote_code": trust_remote_code}
    ours = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # told by us, in one line
    with _quiet_library():
        loaded = _loaded("model", "AutoModelForCausalLM", name_or_path, **ours, **options)
    model: PreTrainedModel = loaded[0]
    _check_complete(model, loaded[1], name_or_path)
    if dtype == "auto" and device is not None and not device.supports(model.dtype):
        kind = str(model.dtype).removeprefix("torch.")
        sys.stderr.write(
            f"{name_or_path}: {kind} becomes float32, twice the bytes: {device.origin} does not compute in {kind}; "
            f"where the model's numbers stay below 65504, --dtype float16 is as good and half as large\n"
        )
        model = model.to(torch.float32)  # type: ignore[arg-type]  # parameter by parameter
    return_freed_memory()
    return model.eval()  # type: ignore[no-any-return, no-untyped-call]


def load_config(name_or_path: str | Path, trust_remote_code: bool = False) -> Any:
    """The configuration of a model, without its weights. Raises InputError if it cannot be loaded."""
    return _loaded("model", "AutoConfig", name_or_path, trust_remote_code=trust_remote_code)


def draws_by_itself(name_or_path: str | Path) -> bool:
    """Whether a model's own generation settings have it draw tokens."""
    try:
        config = _loaded("generation settings", "GenerationConfig", name_or_path)
    except InputError:
        return False  # it has none
    return bool(config.do_sample)


def find_tokenizer(name_or_path: str | Path, trust_remote_code: bool = False) -> "PreTrainedTokenizerBase | None":
    """The tokenizer beside a model, or None if there is none."""
    try:
        return _loaded("tokenizer", "AutoTokenizer", name_or_path, trust_remote_code=trust_remote_code)  # type: ignore[no-any-return]
    except InputError:
        return None


@contextlib.contextmanager
def _quiet_library() -> Iterator[None]:
    """Without the library's report of what a checkpoint lacks, which is a table."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _check_complete(model: "PreTrainedModel", info: Any, name: str | Path) -> None:
    """Raises InputError for a checkpoint that lacks tensors of the model, or holds others."""
    makes_itself = {path for path, _ in model.named_buffers()}
    for key, what in {
        "missing_keys": "lacks",
        "mismatched_keys": "has in another shape",
        "unexpected_keys": "has",
    }.items():
        found = sorted({one[0] if isinstance(one, tuple) else one for one in info[key]} - makes_itself)
        if found:
            others = f" and {len(found) - 1} more" if len(found) > 1 else ""
            told = ", which the model has not" if key == "unexpected_keys" else ""
            raise InputError(
                f"model {str(name)!r}: the checkpoint {what} {found[0]}{others}{told}: give a whole one of this model"
            )


def _loaded(what: str, kind: str, name: str | Path, **options: Any) -> Any:
    import transformers

    try:
        return getattr(transformers, kind).from_pretrained(str(name), **options)
    except Exception as error:  # the library raises whatever its parts raise, SafetensorError among them
        reason = next(iter(str(error).strip().splitlines()), "no reason given")
        raise InputError(
            f"{what} {str(name)!r} cannot be loaded: {type(error).__name__}: {reason}; "
            f"give a local folder or a hub id with a config.json and sound *.safetensors files"
        ) from error
