"""llama.cpp: routed experts of whole layers, or whole layers, in host memory."""

from sim.planning.export.programs.launch import Launch, cache_differs
from sim.planning.export.programs.served_setup import ServedSetup
from sim.planning.export.programs.shell_command import ShellCommand, name_of_width
from sim.problem import packed_bytes
from sim.schedule import Place

MOST_SEQUENCES = 256
"""llama.cpp is compiled for so many requests at once (src/llama-cparams.h, LLAMA_MAX_SEQ)."""
PADDED_TO = 256
"""The context of each request is a multiple of so many tokens (src/llama-context.cpp)."""
OFFLOADS_FROM = 32
"""From so many tokens on, weights of host experts are copied to the device and computed there, in decode too
(ggml-cuda.cu, GGML_OP_OFFLOAD_MIN_BATCH)."""
ALL_LAYERS, MORE_THAN_ALL_LAYERS = "all", 999
"""How the server is told so, and how `llama-bench`, which takes numbers: files may hold layers that predict further
tokens, which count, too."""
EXPERT_TENSORS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"
"""Their names in a GGUF file, as llama.cpp's own options have them (common/common.h, LLM_FFN_EXPS_REGEX)."""


def llama_server(setting: ServedSetup) -> Launch:
    """`llama-server`, and what measures the same: `llama-bench`, or for several requests `llama-batched-bench`."""
    slot_tokens = -(-setting.tokens_of_a_request // PADDED_TO) * PADDED_TO
    context = {"--ctx-size": slot_tokens * setting.requests, "--fit": "off"}
    options = {**_common(setting), **context, "--parallel": setting.requests, "--no-op-offload": _on_host(setting)}
    notes = [*_weights_in_words(setting), *_cache_in_words(setting)]
    if slot_tokens != setting.tokens_of_a_request:
        more = f"Each request has room for {slot_tokens:,} tokens instead of {setting.tokens_of_a_request:,}"
        notes.append(f"{more}: contexts are multiples of {PADDED_TO}")
    if len(_first_layers_on_host(setting)) != len(setting.whole_layers_on_host):
        notes.append("Layers that the host runs whole are the first ones in llama.cpp; others stay on the device")
    notes.append("Threads are as llama.cpp chooses, one for each physical core")
    serve = ShellCommand("llama-server", options, environment=_environment(setting))
    return Launch(serve, _measure(setting, context), tuple(notes))


def _common(setting: ServedSetup) -> dict[str, object]:
    """What the server and both benchmarks are told alike."""
    batch_tokens = max(setting.prompt_tokens, setting.requests)
    cache, _ = name_of_width("llama-cache", setting.cache_bits)
    cpu_moe, override = _experts_in_host_memory(setting)
    return {
        "--model": _file(setting),
        "--n-gpu-layers": _layers_on_device(setting),
        "--n-cpu-moe": cpu_moe,
        "--override-tensor": override,
        "--batch-size": batch_tokens,
        "--ubatch-size": batch_tokens,
        "--flash-attn": "on",
        "--cache-type-k": cache,
        "--cache-type-v": cache,
        "--load-mode": "none",
    }


def _layers_on_device(setting: ServedSetup) -> int | str:
    """Counted from the last one, with the head: all but the first ones, which the host runs whole."""
    on_host = len(_first_layers_on_host(setting))
    return setting.num_layers + 1 - on_host if on_host else ALL_LAYERS


def _measure(setting: ServedSetup, context: dict[str, object]) -> ShellCommand:
    prompt, generated = setting.prompt_tokens_of_a_request, setting.setup.problem.workload.gen_len
    if setting.requests == 1:  # its own parser, which takes a value where the others take none
        asked: dict[str, object] = {"--n-prompt": prompt, "--n-gen": generated, "--output": "json"}
        if not _first_layers_on_host(setting):
            asked["--n-gpu-layers"] = MORE_THAN_ALL_LAYERS
        asked["--no-op-offload"] = 1 if _on_host(setting) else None
        return ShellCommand("llama-bench", {**_common(setting), **asked})
    asked = {"-npp": prompt, "-ntg": generated, "-npl": setting.requests, "--no-op-offload": _on_host(setting)}
    options = {**_common(setting), **context, **asked}
    return ShellCommand("llama-batched-bench", options, environment=_environment(setting))


def _on_host(setting: ServedSetup) -> bool:
    """Whether the host's experts are computed there in prefill, too."""
    return setting.setup.policy.prefills_on(setting.setup.schedule.system) is Place.CPU


def _environment(setting: ServedSetup) -> dict[str, str]:
    """What keeps a decode step of many requests from copying the host's experts to the device."""
    if _on_host(setting) or setting.requests < OFFLOADS_FROM or not setting.experts_on_host:
        return {}
    return {"GGML_OP_OFFLOAD_MIN_BATCH": str(setting.requests + 1)}


def _file(setting: ServedSetup) -> str:
    given = setting.checkpoint
    return given if given.endswith(".gguf") else f"{setting.setup.problem.model.name}.gguf"


def _first_layers_on_host(setting: ServedSetup) -> list[int]:
    """The first layers, as far as the host runs them whole: `--n-gpu-layers` counts from the last one."""
    return [layer for at, layer in enumerate(setting.whole_layers_on_host) if at == layer]


def _experts_in_host_memory(setting: ServedSetup) -> tuple[int | None, str | None]:
    """`--n-cpu-moe` where the layers are the first ones that have experts, else a pattern of their tensors' names."""
    on_host = setting.experts_on_host
    if not on_host:
        return None, None
    stop = on_host[-1] + 1
    others = set(setting.expert_layers) - set(on_host) - set(setting.whole_layers_on_host)
    if not any(layer < stop for layer in others):
        return stop, None
    return None, tensors_of(on_host) + "=CPU"


def tensors_of(layers: list[int]) -> str:
    """A pattern of the names of all tensors that hold routed experts of these layers."""
    return rf"blk\.({'|'.join(map(str, layers))}){EXPERT_TENSORS}"


def _weights_in_words(setting: ServedSetup) -> list[str]:
    model, (name, bits) = setting.setup.problem.model, name_of_width("llama-weights", setting.expert_bits)
    size = packed_bytes(model.embedding_params, setting.setup.placement.widths.embedding) / 1e9
    plan = "as well as on the device, as the head" if model.tie_embeddings else "where the plan has it on the device"
    where = f"The token embedding ({size:.2f} GB) is in host memory, {plan}"
    if setting.checkpoint.endswith(".gguf"):
        return [where]
    width = f"experts of {setting.expert_bits:g} bits a weight: {name} has {bits:g}"
    return [f"Give a GGUF file of {setting.checkpoint} with {width}", where]


def _cache_in_words(setting: ServedSetup) -> list[str]:
    name, bits = name_of_width("llama-cache", setting.cache_bits)
    return [] if bits == setting.cache_bits else [cache_differs(name, bits, setting.cache_bits)]
