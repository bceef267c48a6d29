"""Where every byte of a policy lives: the memory plan, which decides feasibility before anything is simulated."""

from collections.abc import Mapping
from dataclasses import dataclass

from sim.problem import Batch, Hardware, Layer, MicroBatch, Model, Policy, packed_bytes
from sim.schedule import KV_SLOTS, WEIGHT_SLOTS, PipelineShape, Place, Schedule

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
        return batch.copies * tokens * layer.kv_bytes_per_token(policy.cache_bits(model))

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
    exchange = _exchange(shape, model, batch)
    staging = 0 if shape.weights_pinned else schedule.system.pinned_layers * slot
    hidden = packed_bytes(batch.prompt_tokens * model.hidden_size, model.activation_bits)
    largest = max(one.prompt_tokens for one in batch.micro_batches)
    here = batch.num_requests // batch.copies
    waiting = ACTIVATION_SLOTS * largest + here if shape.offloads_hidden else batch.prompt_tokens // batch.copies
    device = {
        "embedding and head": model.resident_bytes() - _non_experts(model),
        "non-expert weights": 0 if schedule.system.streams_non_experts else _non_experts(model),
        "resident experts": _resident_experts(policy, model),
        "weight slots": WEIGHT_SLOTS * slot * batch.copies,
        "kv cache": cache_on_device,
        "kv buffers": _kv_buffers(shape, policy, model, batch) * batch.copies,
        "attention exchange": exchange,
    }
    device = {name: -(-size // num_devices) for name, size in device.items()}
    device["activations"] = _activations(policy, model, batch, num_devices // batch.copies)
    device["hidden states"] = packed_bytes(waiting * model.hidden_size, model.activation_bits)
    host = {
        "streamed weights": model.over_layers(streamed),
        "kv cache": cache - cache_on_device,
        "hidden states": hidden if shape.offloads_hidden else 0,
        "attention exchange": exchange,
        "staging": staging,
    }
    pinned = {
        "streamed weights": host["streamed weights"] if shape.weights_pinned else 0,
        "kv cache": host["kv cache"] if shape.attention is Place.GPU and schedule.system.pins_kv else 0,
        "attention exchange": exchange,
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


def _exchange(shape: PipelineShape, model: Model, batch: Batch) -> int:
    """What attention on the host gets and gives in decode: query, new keys and values, output of every request."""
    if shape.attention is not Place.CPU or batch.gen_len == 1:
        return 0
    attentions = [layer.attention for layer in model.distinct_layers]
    widest = max(one.sent_query_width + one.cached_width + one.returned_width for one in attentions)
    return packed_bytes(batch.num_requests * widest, model.activation_bits)


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


def _activations(policy: Policy, model: Model, batch: Batch, num_devices: int) -> int:
    """Working set of the largest micro-batch in prefill, on one device: the layer that needs most, or the logits."""
    largest = max(batch.micro_batches, key=lambda one: one.prompt_tokens)
    scored = max(one.num_requests * one.max_prompt_tokens**2 for one in batch.micro_batches)
    requests = max(one.num_requests for one in batch.micro_batches)
    needed = requests * model.vocab_size * LOGIT_BYTES // num_devices
    for layer in model.distinct_layers:
        scores = _scores_held(layer, scored, num_devices)
        attention = largest.prompt_tokens * (2 * layer.hidden_size + _attention_held(layer, num_devices)) + scores
        split = 0 < policy.resident_experts(layer) < layer.num_experts
        feed_forward = largest.prompt_tokens * (2 * layer.hidden_size + _feed_forward_held(layer, num_devices, split))
        numbers = packed_bytes(round(max(attention, feed_forward)), model.activation_bits)
        needed = max(needed, numbers + largest.prompt_tokens * _routing_bytes(layer))
    return needed


def _attention_held(layer: Layer, num_devices: int) -> float:
    """Numbers a token holds beside its hidden state, normalised and summed up: query, key, value; the query rotated.

    Rotation holds the query times its cosines, its halves swapped, and these times their sines. In prefill MLA has
    keys and values of every head, and their parts before they are put together.
    """
    attention = layer.attention
    keys_values = attention.cached_width
    if attention.latent:
        keys_values += 2 * attention.num_query_heads * (attention.head_dim + attention.value_head_dim)
    return (4 * attention.query_width + keys_values) / num_devices


def _scores_held(layer: Layer, pairs: int, num_devices: int) -> float:
    """Numbers of the matrices of scores, where no kernel spares them: with sinks, before and after, and shifted."""
    return 3 * layer.attention.num_query_heads * pairs / num_devices if layer.attention.sinks else 0.0


def _feed_forward_held(layer: Layer, num_devices: int, split: bool) -> float:
    """Numbers a token holds in the experts: all of its routed experts are computed at once, in the order of experts.

    Mostly that is input, gate, up and their product (the optimizer of MoE-Lightning counts the same). With experts in
    two places each part gathers its own tokens, which may be all of them, and adds to a common result.
    """
    always = 3 * (_width(layer.shared) + _width(layer.dense)) / num_devices
    if layer.expert is None:
        return always
    hidden = layer.hidden_size
    routed = layer.expert.held_numbers(num_devices)
    if split:
        routed += hidden
    kept = hidden * (bool(layer.shared) + split)
    return max(layer.computed_experts * routed, always) + kept


def _routing_bytes(layer: Layer) -> int:
    """A token's scores of all experts, and of each that it uses the weight, the number, and the place in the order."""
    return 8 * layer.num_experts + 48 * layer.top_k


def _width(network: object) -> int:
    return getattr(network, "intermediate_size", 0)
