"""Stage 1: tiny models of many families give the tokens of plain `generate()` on the device, by several schedules."""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

import engine
from engine.device import Device
from sim.problem import Policy
from sim.schedule import by_name
from validation.gpu.piece import MET, SAID, Piece
from validation.gpu.random_models import PAD, random_prompts, tiny_model
from validation.gpu.workbench import Workbench

SCHEDULES = ("cgopipe", "hybrid", "expert-cache", "n-cpu-moe", "cpu-experts", "flexgen", "zero")
WATCHED_SCHEDULES = SCHEDULES[:3]
"""Those that have a stream or a thread of their own for what they do: torch's detector slows a run down much."""

PROMPT_TOKENS = (5, 9, 3, 7, 12, 4, 6)
MICRO_BATCH_SIZE = 3
NEW_TOKENS = 6
DEVICE_BYTES = 4_000_000_000

WATCHED = "TORCH_CUDA_SANITIZER"
"""The variable that turns torch's detector of unordered accesses on."""

PATIENCE_S = 240.0
TOLD_LINES = 30


def token_pieces(bench: Workbench) -> Iterator[Piece]:
    """Every family by every schedule; then a program that torch watches for unordered accesses, slow for its size."""
    seconds = bench.scale.seconds["tokens"]
    for family in bench.scale.families:
        for schedule in SCHEDULES:
            yield Piece(f"{family}, {schedule}", seconds, partial(equal_tokens, bench, family, schedule))
    yield Piece("no unordered access (torch's CUDA sanitizer)", 40 * seconds, partial(watched_program, bench))


def tokens_by_schedule(model: PreTrainedModel, schedule: str, device: Device) -> list[list[int]]:
    """What the engine generates for the usual prompts."""
    chosen = by_name(schedule)
    policy = Policy.usual(chosen, len(PROMPT_TOKENS), MICRO_BATCH_SIZE)
    made = engine.run(model, _prompts(model), chosen, policy, max_new_tokens=NEW_TOKENS, device=device, do_sample=False)
    return made.sequences


def _prompts(model: PreTrainedModel) -> list[list[int]]:
    longest = max(PROMPT_TOKENS)
    rows = random_prompts(model.config.vocab_size, len(PROMPT_TOKENS), longest)
    return [row[:length] for row, length in zip(rows, PROMPT_TOKENS, strict=True)]


def equal_tokens(bench: Workbench, family: str, schedule: str) -> dict[str, Any]:
    """Whether the engine's tokens for a tiny model are those of plain `generate()`."""
    model = tiny_model(family)
    size = len(PROMPT_TOKENS) if by_name(schedule).system.one_batch else MICRO_BATCH_SIZE
    try:
        expected = _plain_tokens(model, _prompts(model), size, bench.torch_device)
    except RuntimeError as error:  # MiniMax on CUDA with torch 2.11: there is nothing to compare with
        return {SAID: f"plain generate() itself fails on this device: {str(error).splitlines()[0]}"}
    with bench.device(DEVICE_BYTES) as device:
        found = tokens_by_schedule(model, schedule, device)
    equal = sum(one == other for one, other in zip(found, expected, strict=True))
    return {MET: found == expected, "requests": len(expected), "equal": equal}


def _plain_tokens(
    model: PreTrainedModel, prompts: Sequence[list[int]], size: int, device: torch.device
) -> list[list[int]]:
    """Plain `generate()` on the device for each micro-batch alone, padded to its longest prompt."""
    on_device = copy.deepcopy(model).to(device)  # type: ignore[arg-type]
    rows: list[list[int]] = []
    for first in range(0, len(prompts), size):
        batch = prompts[first : first + size]
        width = max(map(len, batch))
        ids = torch.tensor([[PAD] * (width - len(one)) + one for one in batch], device=device)
        mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in batch], device=device)
        options = {"attention_mask": mask, "max_new_tokens": NEW_TOKENS, "do_sample": False}
        made = on_device.generate(ids, **options)
        rows += made[:, width:].tolist()
    return rows


def watched_program(bench: Workbench) -> dict[str, Any]:
    """One run in a process of its own, as the detector is on from the start of a program to its end."""
    if not bench.is_cuda:
        return {SAID: f"it watches CUDA streams only; this is: {bench.origin}"}
    program = [sys.executable, "-m", "validation.gpu.stages.watched"]
    environment = {**os.environ, WATCHED: "1"}
    done = subprocess.run(
        program,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
        stdin=subprocess.DEVNULL,
    )
    told = done.stderr.strip().splitlines()[-TOLD_LINES:]
    found = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 and done.stdout.strip() else {}
    return {MET: done.returncode == 0 and bool(found), **found, "exit_code": done.returncode, "told": told}
