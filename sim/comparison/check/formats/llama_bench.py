"""What llama-bench writes: a record for each test, with all options that it ran with.

It copies weights from page-locked memory, and in prefill the experts that are not on the GPU to it ("op offload").
Its tests are of a prompt (`n_prompt`), of generation (`n_gen`), or of both; `avg_ts` counts the tokens of both.
Fields and their meaning: tools/llama-bench/llama-bench.cpp of ggml-org/llama.cpp (get_fields).
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from sim.comparison.check.formats.fields import count, flag, number
from sim.comparison.check.measurement import Measurement, RunSetting, Speed
from traces.errors import InputError, nearest, shown

PROGRAM = "llama.cpp"
SCHEDULE = "n-cpu-moe"

CACHE_BITS = {
    **{"f32": 32.0, "f16": 16.0, "bf16": 16.0},
    **{"q8_0": 8.5, "q5_1": 6.0, "q5_0": 5.5, "q4_1": 5.0, "q4_0": 4.5, "iq4_nl": 4.5},
}
"""Bits of an element of the KV cache by its type, scales of its blocks of 32 included."""

MOST_LAYERS = 1000
"""Layers beyond which none is looked for in patterns."""


def of_llama_bench(record: Mapping[str, Any]) -> Iterator[Measurement]:
    """The one speed of a test."""
    prompt, generated = count(record, "n_prompt"), count(record, "n_gen")
    rate, depth = number(record, "avg_ts"), count(record, "n_depth", 0)
    setting = _setting(record)
    if not generated:
        if depth:
            raise InputError(f"n_depth: {depth}: a prompt behind tokens that are there already is not predicted")
        yield Measurement(Speed.PREFILL, rate, prompt_len=prompt, gen_len=1, setting=setting)
    elif not prompt:
        yield Measurement(Speed.DECODE, rate, prompt_len=max(1, depth), gen_len=generated + 1, setting=setting)
    else:
        of_generated = rate * generated / (prompt + generated)
        yield Measurement(Speed.WHOLE, of_generated, prompt_len=prompt, gen_len=generated, setting=setting)


def _setting(record: Mapping[str, Any]) -> RunSetting:
    layers = count(record, "n_gpu_layers", -1)
    pieces = min(count(record, "n_ubatch", 512), count(record, "n_batch", 2048))
    mapped = flag(record, "use_mmap")
    if "load_mode" in record:  # as newer builds say it
        mapped = "mmap" in str(record["load_mode"])
    return RunSetting(
        PROGRAM,
        str(record.get("model_type", "")),
        str(record.get("gpu_info", "")),
        str(record.get("cpu_info", "")),
        SCHEDULE,
        {"pin_weights": 1.0, "prefill_experts": "cpu" if flag(record, "no_op_offload") else "gpu"},
        host_layers=_host_layers(record),
        device_layers=None if layers < 0 else layers,
        piece_tokens=pieces,
        kv_bits=(_cache_bits(record, "type_k") + _cache_bits(record, "type_v")) / 2,
        threads=count(record, "n_threads", 0) or None,
        is_mapped=mapped,
        model_params=count(record, "model_n_params", 0) or None,
        model_bytes=count(record, "model_size", 0) or None,
    )


def _cache_bits(record: Mapping[str, Any], name: str) -> float:
    kind = str(record.get(name) or "f16").lower()
    if kind not in CACHE_BITS:
        raise InputError(f"{name}: {shown(kind)} is unknown{nearest(kind, CACHE_BITS)}; known: {', '.join(CACHE_BITS)}")
    return CACHE_BITS[kind]


def _host_layers(record: Mapping[str, Any]) -> tuple[int, int]:
    """By --n-cpu-moe, or by patterns of tensors that -ot leaves to the CPU."""
    of_first = count(record, "n_cpu_moe", 0)
    text = str(record.get("tensor_buft_overrides") or "none")
    patterns = [one.rpartition("=")[0] for one in text.split(";") if one.upper().endswith("=CPU")]
    if of_first or not patterns:
        return 0, of_first
    found = [layer for layer in range(MOST_LAYERS) if _is_left(layer, patterns)]
    if found and found != list(range(found[0], found[-1] + 1)):
        raise InputError(
            f"tensor_buft_overrides: {shown(text)} leaves layers to the CPU that are not one after another"
        )
    return (found[0], found[-1] + 1) if found else (0, 0)


def _is_left(layer: int, patterns: list[str]) -> bool:
    """Whether all three matrices of a layer's experts match some pattern. Raises InputError for what is no pattern."""
    names = [f"blk.{layer}.ffn_{part}_exps.weight" for part in ("gate", "up", "down")]
    try:
        return all(any(re.search(one, name) for one in patterns) for name in names)
    except re.error as error:
        raise InputError(f"tensor_buft_overrides: {shown(';'.join(patterns))} is no pattern: {error}") from None
