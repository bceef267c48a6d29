"""Where every byte of a policy lives: the memory plan, which decides feasibility before anything is simulated."""

from collections.abc import Mapping
from dataclasses import dataclass

from sim.batching import Batch, MicroBatch
from sim.hardware import Hardware
from sim.layer import Layer, packed_bytes
from sim.model import Model
from sim.policy import Policy
from sim.schedule.accesses import KV_SLOTS, WEIGHT_SLOTS
from sim.schedule.base import Schedule
from sim.schedule.shape import PipelineShape, Place

ACTIVATION_SLOTS = 2
"""Device buffers of one micro-batch's hidden states that take turns while the others wait on the host."""

LOGIT_BYTES = 4

Tier = str
"""One of `device` (each device), `host`, `pinned` (page-locked, part of the host's)."""


@dataclass(frozen=True, slots=True)
class Shortage:
    """A memory that a policy does not fit."""

    tier: Tier
    needed_bytes: int
    capacity_bytes: int

    @property
    def short_bytes(self) -> int:
        return self.needed_bytes - self.capacity_bytes

    def __str__(self) -> str:
        return (
            f"{self.tier} memory is {self.short_bytes:,} bytes short "
            f"(needs {self.needed_bytes / 1e9:.2f} GB of {self.capacity_bytes / 1e9:.2f} GB)"
        )


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes per tier by what they hold; `device` is one device's share."""

    device: Mapping[str, int]
    host: Mapping[str, int]
    pinned: Mapping[str, int]

    def tiers(self) -> dict[Tier, Mapping[str, int]]:
        """The plans of all tiers."""
        return {"device": self.device, "host": self.host, "pinned": self.pinned}

    def peak_bytes(self) -> dict[Tier, int]:
        """Each tier's total; pinned memory is counted in the host's too."""
        return {tier: sum(parts.values()) for tier, parts in self.tiers().items()}

    def shortages(self, hardware: Hardware) -> list[Shortage]:
        """Every memory of the machine that the plan does not fit, the largest lack first."""
        capacities = {
            "device": hardware.device_memory.capacity_bytes,
            "host": hardware.host_memory.capacity_bytes,
            "pinned": hardware.pinned_bytes,
        }
        peaks = self.peak_bytes()
        short = [Shortage(t, peaks[t], int(limit)) for t, limit in capacities.items() if peaks[t] > int(limit)]
        return sorted(short, key=lambda shortage: -shortage.short_bytes)


def kept_tokens(layer: Layer, micro_batch: MicroBatch, step: int) -> int:
    """KV entries that one layer keeps of a micro-batch after `step`; a sliding window drops older ones."""
    context, window = micro_batch.context_tokens(step), layer.attention.window
    return context if window is None else min(context, window * micro_batch.num_requests)


def kv_bytes(model: Model, policy: Policy, batch: Batch, step: int) -> int:
    """The whole KV cache after `step`, wherever it lives."""

    def of_layer(layer: Layer) -> int:
        tokens = sum(kept_tokens(layer, one, step) for one in batch.micro_batches)
        return tokens * layer.kv_bytes_per_token(policy.cache_bits(model))

    return model.over_layers(of_layer)


def plan_memory(
    schedule: Schedule, shape: PipelineShape, policy: Policy, model: Model, batch: Batch, num_devices: int = 1
) -> MemoryPlan:
    """Plan the memory of a whole generation: weights, KV cache at its longest, activations, buffers, staging."""

    def streamed(layer: Layer) -> int:
        return policy.streamed_bytes(schedule, model, layer)

    slot = max(streamed(layer) for layer in model.distinct_layers)
    cache = kv_bytes(model, policy, batch, batch.gen_len - 1)
    cache_on_device = round(cache * policy.kv_on_device)
    staging = 0 if shape.weights_pinned else schedule.pinned_layers * slot
    hidden = packed_bytes(batch.prompt_tokens * model.hidden_size, model.activation_bits)
    largest = max(one.prompt_tokens for one in batch.micro_batches)
    waiting = ACTIVATION_SLOTS * largest + batch.num_requests if shape.offloads_hidden else batch.prompt_tokens
    device = {
        "embedding and head": model.resident_bytes() - _non_experts(model),
        "non-expert weights": 0 if schedule.streams_non_experts else _non_experts(model),
        "resident experts": _resident_experts(policy, model),
        "weight slots": WEIGHT_SLOTS * slot,
        "kv cache": cache_on_device,
        "kv buffers": _kv_buffers(shape, policy, model, batch),
    }
    device = {name: -(-size // num_devices) for name, size in device.items()}
    device["activations"] = _activations(model, batch, num_devices)
    device["hidden states"] = packed_bytes(waiting * model.hidden_size, model.activation_bits)
    host = {
        "streamed weights": model.over_layers(streamed),
        "kv cache": cache - cache_on_device,
        "hidden states": hidden if shape.offloads_hidden else 0,
        "staging": staging,
    }
    pinned = {
        "streamed weights": host["streamed weights"] if shape.weights_pinned else 0,
        "kv cache": host["kv cache"] if shape.attention is Place.GPU and schedule.pins_kv else 0,
        "staging": staging,
    }
    return MemoryPlan(_present(device), _present(host), _present(pinned))


def _present(parts: Mapping[str, int]) -> dict[str, int]:
    return {name: size for name, size in parts.items() if size}


def _non_experts(model: Model) -> int:
    return model.over_layers(lambda layer: layer.non_expert_bytes(model.other_bits))


def _resident_experts(policy: Policy, model: Model) -> int:
    bits = policy.expert_bits(model)
    return model.over_layers(lambda layer: policy.resident_experts(layer) * layer.expert_bytes(bits))


def _kv_buffers(shape: PipelineShape, policy: Policy, model: Model, batch: Batch) -> int:
    """Buffers that take turns: new entries of one micro-batch's prompts, and with GPU attention its streamed cache."""
    if not shape.streams_kv:
        return 0
    largest = 0
    for layer in model.distinct_layers:
        per_token = layer.kv_bytes_per_token(policy.cache_bits(model))
        new = max(kept_tokens(layer, one, 0) for one in batch.micro_batches)
        loaded = 0
        if shape.attention is Place.GPU:
            last = max(kept_tokens(layer, one, batch.gen_len - 1) for one in batch.micro_batches)
            loaded = round(last * (1 - policy.kv_on_device))
        largest = max(largest, KV_SLOTS * (new + loaded) * per_token)
    return largest


def _activations(model: Model, batch: Batch, num_devices: int) -> int:
    """Working set of the largest micro-batch in prefill, on one device: every routed token's expert inputs at once.

    Hidden states normalised and summed up; query, key, value and the attention's output; per token and routed expert
    one input and gate, up and their product (the optimizer of MoE-Lightning counts the same).
    """
    tokens = max(one.prompt_tokens for one in batch.micro_batches)
    requests = max(one.num_requests for one in batch.micro_batches)
    widest = 0.0
    for layer in model.distinct_layers:
        attention = layer.attention
        heads = (attention.query_width + attention.cached_width + attention.output_width) / num_devices
        routed = layer.top_k * (layer.hidden_size + 3 * _width(layer.expert) / num_devices)
        always = 3 * (_width(layer.shared) + _width(layer.dense)) / num_devices
        widest = max(widest, 2 * layer.hidden_size + max(heads, routed + always))
    logits = requests * model.vocab_size * LOGIT_BYTES // num_devices
    return max(packed_bytes(round(tokens * widest), model.activation_bits), logits)


def _width(network: object) -> int:
    return getattr(network, "intermediate_size", 0)
