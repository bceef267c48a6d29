"""Stage 5: what others do with the same device memory: accelerate's dispatch, and plain `generate()`."""

import contextlib
import time
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from transformers import PreTrainedModel

from engine.device import for_now
from validation.gpu.piece import SAID, Piece
from validation.gpu.random_models import random_prompts
from validation.gpu.workbench import Workbench, available_host_bytes, weight_bytes

WEIGHTS_SHARE = 0.6
"""Of the cap, what accelerate may fill with weights; the rest is for activations and the KV cache."""


def peer_pieces(bench: Workbench) -> Iterator[Piece]:
    """For each model: accelerate at the cap, plain with as many layers as fit the cap, plain without a cap."""
    seconds = bench.scale.seconds["peers"]
    for name, spec in bench.scale.models.items():
        yield Piece(f"{name}: accelerate at the same cap", 2 * seconds, partial(_accelerate, bench, name))
        few = f"{name}: plain generate(), {spec.resident_layers} layers all resident at the same cap"
        yield Piece(few, seconds, partial(all_resident, bench, name, spec.resident_layers, spec.device_bytes))
        yield Piece(f"{name}: plain generate(), all resident, no cap", seconds, partial(all_resident, bench, name))
        whole = f"{name}: plain generate(), all layers at the same cap"
        yield Piece(whole, seconds, partial(all_resident, bench, name, None, spec.device_bytes))


def _accelerate(bench: Workbench, name: str) -> dict[str, Any]:
    if find_spec("accelerate") is None:
        return {SAID: "accelerate is not installed"}
    if not bench.is_real:
        return {SAID: f"accelerate streams to a real device only; this is: {bench.origin}"}
    accelerate = import_module("accelerate")

    model: Any
    cap_bytes, model = bench.spec(name).device_bytes, bench.model(name)
    memory = {bench.torch_device.index or 0: int(WEIGHTS_SHARE * cap_bytes), "cpu": 1 << 50}
    whole = list(getattr(model, "_no_split_modules", None) or ())
    try:
        places = accelerate.infer_auto_device_map(model, max_memory=memory, no_split_module_classes=whole)
        dispatched = accelerate.dispatch_model(model, device_map=places)
        on_device = sum(place not in ("cpu", "disk") for place in places.values())
        with _capped(bench, cap_bytes):
            return {**generate_in_batches(bench, dispatched), "modules_on_device": on_device, "modules": len(places)}
    finally:
        model = dispatched = None
        bench.drop_models()  # its parameters are accelerate's now


def all_resident(
    bench: Workbench, name: str, layers: int | None = None, cap_bytes: int | None = None
) -> dict[str, Any]:
    """All of the model on the device; said, where it does not fit there."""
    needed_bytes = weight_bytes(bench.described(name, layers))
    limit_bytes = _free_bytes(bench) if cap_bytes is None else cap_bytes
    if needed_bytes >= limit_bytes:
        return {SAID: f"does not fit: {needed_bytes / 1e9:.1f} GB of weights for {limit_bytes / 1e9:.1f} GB"}
    model = bench.model(name, layers)
    try:
        with _capped(bench, cap_bytes):
            if bench.is_real:
                model.to(bench.torch_device)  # type: ignore[arg-type]
            return {**generate_in_batches(bench, model), "weight_bytes": needed_bytes}
    except torch.OutOfMemoryError:
        return {SAID: f"does not fit: {needed_bytes / 1e9:.1f} GB of weights leave no room"}
    finally:
        if bench.is_real:
            del model
            bench.drop_models()  # faster to make anew than to copy back


def generate_in_batches(bench: Workbench, model: PreTrainedModel) -> dict[str, Any]:
    """A batch of the requests of stage 4, halved until it fits."""
    scale = bench.scale
    prompts = torch.tensor(random_prompts(model.config.vocab_size, scale.requests, scale.prompt_tokens))
    size = scale.requests
    while True:
        try:
            seconds = seconds_of_a_batch(bench, model, prompts[:size])
            break
        except torch.OutOfMemoryError:
            if size == 1:
                return {SAID: "does not fit, even one request at a time"}
            size = -(-size // 2)
            bench.empty_caches()
    return {
        "tokens_per_s": size * scale.gen_len / seconds,
        "seconds": seconds,
        "batch_size": size,
        "peak_bytes": bench.torch_module.max_memory_allocated() if bench.is_real else None,
    }


def seconds_of_a_batch(bench: Workbench, model: PreTrainedModel, prompts: torch.Tensor) -> float:
    """All requests of one batch, after a token of one of them that warms up."""
    start_s = 0.0
    for ids, new_tokens in ((prompts[:1], 1), (prompts, bench.scale.gen_len)):
        start_s = time.perf_counter()
        placed = ids.to(bench.torch_device)
        mask = torch.ones_like(placed)
        model.generate(placed, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False)  # type: ignore[operator]
        if bench.is_real:
            bench.torch_module.synchronize()
    return time.perf_counter() - start_s


def _free_bytes(bench: Workbench) -> int:
    """Device memory without a cap; an emulated device's is the host's."""
    if bench.is_real:
        bench.empty_caches()
        return int(bench.torch_module.mem_get_info()[0])
    return available_host_bytes()


def _capped(bench: Workbench, cap_bytes: int | None) -> Any:
    """While entered torch may have so much of the device. On an emulated device nothing holds plain code back."""
    if bench.is_real:
        bench.empty_caches()  # what torch keeps of freed memory counts against a cap
        bench.torch_module.reset_peak_memory_stats()
    if cap_bytes is None or not bench.is_real:
        return contextlib.nullcontext()
    whole_bytes = bench.torch_module.mem_get_info()[1]

    def limit(share: float) -> None:
        bench.torch_module.set_per_process_memory_fraction(share)

    return for_now(limit, min(1.0, cap_bytes / whole_bytes), 1.0)
