"""The options that say which model a command uses."""

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def add_model(parser: Any) -> None:
    """Add them to a parser or a group of it."""
    parser.add_argument("--model", required=True, help="a folder with a model, or a hub id")
    parser.add_argument("--dtype", default="auto", help="of the loaded weights (default: the checkpoint's)")
    parser.add_argument("--trust-remote-code", action="store_true", help="let the checkpoint bring model code")


def model_of(args: argparse.Namespace) -> "PreTrainedModel":
    """The model that is asked for, in host memory. Raises InputError if it cannot be loaded."""
    from transformers.utils import logging

    from engine.generation.checkpoint import load_model

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # one bar is enough: ours
    return load_model(args.model, args.dtype, args.trust_remote_code)
