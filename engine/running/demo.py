"""A tour without a download: a small random model with a byte tokenizer, saved, loaded and run by a schedule."""

import argparse
import contextlib
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from engine.running.command import add_arguments, run
from traces.cli import Command, OneLineParser

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PROMPTS = (
    "A mixture of experts",
    "The link between host and device",
    "Pages of weights travel",
    "Attention on the CPU",
    "Once upon a time",
    "0, 1, 1, 2, 3, 5, 8",
    "import torch",
    "To be, or not to be",
)


def make_model(folder: Path, hidden_size: int = 256, num_layers: int = 4) -> None:
    """Saves a random Mixtral-shaped model of a few million parameters with a tokenizer of bytes."""
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    tokenizer = _byte_tokenizer()
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=8,
        num_key_value_heads=2,
        num_local_experts=8,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    MixtralForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where to keep model and results (default: nowhere)")
    parser.add_argument("--schedule", default="cgopipe", help="(default: %(default)s)")


def _run(args: argparse.Namespace) -> int:
    """Make the model, write requests, run them as a user would, and show what came out."""
    with contextlib.ExitStack() as stack:
        folder = args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        model, requests, results = folder / "model", folder / "prompts.jsonl", folder / "results.jsonl"
        trace = folder / "run.json.gz"
        make_model(model)
        requests.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS), encoding="utf-8")
        results.unlink(missing_ok=True)
        command = ["--model", str(model), "--input", str(requests), "--output", str(results)]
        command += ["--schedule", args.schedule, "--device", "emulated", "--h2d-gbs", "1", "--d2h-gbs", "1"]
        command += ["--device-memory-gb", "0.5", "--micro-batch-size", "2", "--num-micro-batches", "4"]
        command += ["--max-new-tokens", "16", "--trace", str(trace)]
        sys.stderr.write(f"a random model of bytes in {model}; now: python -m engine run {' '.join(command)}\n")
        parser = OneLineParser()
        add_arguments(parser)
        run(parser.parse_args(command))
        for line in results.read_text(encoding="utf-8").splitlines():
            result = json.loads(line)
            sys.stdout.write(f"{result['prompt']!r} -> {result['token_ids']}\n")
        sys.stdout.write(f"trace: {trace} ({trace.stat().st_size} bytes), opens in ui.perfetto.dev\n")
        return 0


def _byte_tokenizer() -> "PreTrainedTokenizerFast":
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = ["<pad>", "<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    kwargs = {"tokenizer_object": tokenizer, "pad_token": "<pad>", "eos_token": "<eos>"}
    return PreTrainedTokenizerFast(**kwargs)  # type: ignore[no-untyped-call]


DEMO = Command(
    "demo",
    "make a small random model and run it",
    ("", "--schedule flexgen --folder demo"),
    _add_arguments,
    _run,
    needs="engine",
)
