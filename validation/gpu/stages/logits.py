"""Stage 2: in bf16 the offloaded engine's logits are those of the plain model that is all on the device.

Every request is told the same next tokens in each run, whatever the model says, so that all logits are of one text. A
plain run in other micro-batches is the measure: it differs by rounding alone.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

import engine
from sim.problem import Policy
from sim.schedule import Place, by_name
from validation.gpu.piece import MET, SAID, Piece
from validation.gpu.random_models import random_prompts
from validation.gpu.workbench import Workbench

PROMPT_TOKENS = 24
NEW_TOKENS = 6

BARS = {"mean_difference": 0.05, "equal_argmax": 0.9}
"""Mean difference as a share of the logits' spread, at most; share of positions with the same best token, at least."""

RUNS = {
    "cgopipe, attention on the CPU": ("cgopipe", Place.CPU),
    "flexgen, attention on the GPU": ("flexgen", Place.GPU),
}
PLAIN = "plain, in one batch"
SPLIT = "plain, in batches of half the size"

Logits = dict[tuple[int, ...], torch.Tensor]
"""Of each text so far, what the model said of the next token."""


class TeacherForcing(LogitsProcessor):
    """Keeps what the model says, and has it go on with a token that depends on the text alone."""

    def __init__(self) -> None:
        self.seen: Logits = {}

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        texts = input_ids.tolist()
        for text, row in zip(texts, scores.float().cpu(), strict=True):
            self.seen[tuple(text)] = row
        forced = torch.full_like(scores, -torch.inf)
        told = [(31 * text[-1] + 17 * len(text) + 1) % scores.shape[-1] for text in texts]
        forced[torch.arange(len(told)), told] = 0.0
        return forced


def logit_pieces(bench: Workbench) -> Iterator[Piece]:
    """The plain model first: what all others are held against."""
    plain: Logits = {}
    seconds, size = bench.scale.seconds["parity"], bench.scale.parity_requests
    yield Piece(PLAIN, seconds, lambda: _plain_first(bench, plain))
    for name, (schedule, place) in RUNS.items():
        yield Piece(name, seconds, partial(held_against, bench, plain, partial(_engine_logits, bench, schedule, place)))
    yield Piece(SPLIT, seconds, partial(held_against, bench, plain, lambda: _plain_logits(bench, size // 2), bar=False))


def _plain_first(bench: Workbench, plain: Logits) -> dict[str, Any]:
    plain.update(_plain_logits(bench, bench.scale.parity_requests))
    spread = torch.stack(list(plain.values())).std().item()
    return {"positions": len(plain), "spread": spread, "layers": bench.scale.parity_layers}


def held_against(bench: Workbench, plain: Logits, make: Callable[[], Logits], *, bar: bool = True) -> dict[str, Any]:
    """How far logits are from the plain ones."""
    if not plain:
        plain.update(_plain_logits(bench, bench.scale.parity_requests))
    found = make()
    if found.keys() != plain.keys():
        return {MET: False, SAID: "other texts than the plain run's: the engine's tokens are not those it was told"}
    ours, theirs = (torch.stack([one[text] for text in plain]) for one in (found, plain))
    apart, spread = (ours - theirs).abs(), theirs.std().item()
    result = {
        "mean_difference": apart.mean().item() / spread,
        "max_difference": apart.max().item() / spread,
        "equal_argmax": (ours.argmax(-1) == theirs.argmax(-1)).float().mean().item(),
    }
    if not bar:
        return result
    met = result["mean_difference"] <= BARS["mean_difference"] and result["equal_argmax"] >= BARS["equal_argmax"]
    return {MET: met, **result}


def _prompts(model: PreTrainedModel, count: int) -> list[list[int]]:
    return random_prompts(model.config.vocab_size, count, PROMPT_TOKENS)


def _options() -> tuple[TeacherForcing, dict[str, Any]]:
    teacher = TeacherForcing()
    return teacher, {"logits_processor": LogitsProcessorList([teacher]), "do_sample": False}


def _plain_logits(bench: Workbench, size: int) -> Logits:
    """Of the plain model, all of it on the device. It goes afterwards: the engine has its own on the host."""
    name, layers = bench.scale.parity_model, bench.scale.parity_layers
    model = bench.model(name, layers)
    prompts = torch.tensor(_prompts(model, bench.scale.parity_requests), device=bench.torch_device)
    teacher, options = _options()
    if bench.is_real:
        model.to(bench.torch_device)  # type: ignore[arg-type]
    try:
        for ids in torch.split(prompts, size):
            mask = torch.ones_like(ids)
            model.generate(ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, **options)  # type: ignore[operator]
    finally:
        if bench.is_real:
            model.to("cpu")  # type: ignore[arg-type]
            bench.empty_caches()
    return teacher.seen


def _engine_logits(bench: Workbench, schedule: str, place: Place) -> Logits:
    scale, chosen = bench.scale, by_name(schedule)
    model, count = bench.model(scale.parity_model, scale.parity_layers), scale.parity_requests
    policy = Policy.usual(chosen, count, count // 2, attention=place, pin_weights=True)
    teacher, options = _options()
    with bench.device(scale.whole.device_bytes) as device:
        engine.run(model, _prompts(model, count), chosen, policy, max_new_tokens=NEW_TOKENS, device=device, **options)
    return teacher.seen
