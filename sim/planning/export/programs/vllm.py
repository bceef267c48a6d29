"""vLLM: experts of whole layers in page-locked host memory, prefetched or read over the link as they are used."""

from collections.abc import Sequence
from dataclasses import dataclass

from sim.planning.export.programs.launch import Launch, cache_differs
from sim.planning.export.programs.served_setup import ServedSetup
from sim.planning.export.programs.shell_command import ShellCommand, name_of_width

GIB = 2**30
EXPERTS = "experts"
"""What the names of routed experts' parameters have in common, as a whole segment of them."""


@dataclass(frozen=True, slots=True)
class Groups:
    """Of every `size` layers the last `offloaded` ones have their experts on the host."""

    size: int
    offloaded: int

    def layers(self, num_layers: int) -> list[int]:
        """Those of a model of so many layers."""
        return [layer for layer in range(num_layers) if layer % self.size >= self.size - self.offloaded]


def groupings(num_layers: int, expert_layers: Sequence[int]) -> dict[int, Groups]:
    """By the number of layers that have their experts on the host, how vLLM is told so: the most even way of each."""
    with_experts = set(expert_layers)
    found: dict[int, Groups] = {}
    for size in range(1, num_layers + 1):
        for offloaded in range(1, size + 1):
            groups = Groups(size, offloaded)
            found.setdefault(len(with_experts.intersection(groups.layers(num_layers))), groups)
    found.pop(0, None)
    return dict(sorted(found.items()))


def prefetching_server(setting: ServedSetup) -> Launch:
    """`vllm serve` with the next layer's experts on their way while this layer computes."""
    on_host = num_layers_on_host(setting)
    groups = groupings(setting.num_layers, setting.expert_layers).get(on_host)
    offload: dict[str, object] = {}
    if groups is not None:
        offload = {
            "--offload-backend": "prefetch",
            "--offload-group-size": groups.size,
            "--offload-num-in-group": groups.offloaded,
            "--offload-prefetch-step": 1,
            "--offload-params": EXPERTS,
        }
    return _launch(setting, offload)


def reading_server(setting: ServedSetup) -> Launch:
    """`vllm serve` whose kernels read the host's experts over the link, those that tokens use."""
    size = bytes_on_host(setting) / setting.num_devices / GIB
    given = f"{int(size * 1000) / 1000:.3f}"  # rounded down: whole tensors follow until so much is reached
    offload: dict[str, object] = {
        "--offload-backend": "uva",
        "--cpu-offload-gb": given,
        "--cpu-offload-params": EXPERTS,
    }
    return _launch(setting, offload if num_layers_on_host(setting) else {})


def num_layers_on_host(setting: ServedSetup) -> int:
    """Layers whose experts are not on the device, where the plan's share of them makes up whole layers."""
    most = max(one.num_experts for one in setting.setup.problem.model.layers)
    elsewhere = sum(most - resident for resident in setting.resident_experts)
    return round(elsewhere / most)


def bytes_on_host(setting: ServedSetup) -> int:
    """Of experts that are not on the device."""
    placement = setting.setup.placement
    return sum(
        count * (split.streamed + split.fetched) * layer.expert_bytes(placement.widths.experts)
        for (layer, split), count in zip(placement.distinct, placement.counts, strict=True)
    )


def _launch(setting: ServedSetup, offload: dict[str, object]) -> Launch:
    cache, cache_bits = name_of_width("vllm-cache", setting.cache_bits)
    options = {
        **offload,
        "--max-num-seqs": setting.requests,
        "--max-model-len": setting.tokens_of_a_request,
        "--max-num-batched-tokens": max(setting.prompt_tokens, setting.tokens_of_a_request),
        "--gpu-memory-utilization": setting.share_of_device(3),
        "--tensor-parallel-size": setting.num_devices,
        "--kv-cache-dtype": cache,
    }
    notes = [f"Weights are as {setting.checkpoint} stores them: the plan has experts of {setting.expert_bits:g} bits"]
    if cache_bits != setting.cache_bits:
        notes.append(cache_differs(cache, cache_bits, setting.cache_bits))
    return Launch(ShellCommand("vllm serve", options, (setting.checkpoint,)), notes=tuple(notes))
