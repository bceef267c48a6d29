"""Where every byte of a policy lives: the memory plan, which decides feasibility before anything is simulated."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sim.problem import (
    Batch,
    Hardware,
    Layer,
    MicroBatch,
    Model,
    Placement,
    Policy,
    are_unpacked,
    packed_bytes,
    unpacked_at_once,
    unpacked_experts,
    unpacks_experts,
)
from sim.schedule import ON_DEVICE, Buffer, By, ExpertPlace, Holds, MemoryPart, PipelineShape, Schedule, Tier, layout_of

LOGIT_BYTES = 4
INDEX_BYTES, WEIGHT_BYTES = 8, 4
"""Of each expert of a token: its number, and what its output counts for."""

ROUTED = frozenset({Holds.ROUTED, Holds.NEXT_ROUTED})
"""What goes into experts."""
IN_DECODE = frozenset({Holds.NEXT_ROUTED, Holds.DEFERRED_OUTPUT})
OF_EXPERTS = ROUTED | IN_DECODE | {Holds.EXPERT_OUTPUT, Holds.DEVICE_OUTPUT}
"""What goes into them and what comes out, of these what only decode has."""

KEPT = frozenset({Holds.CACHE, Holds.PROMPT_CACHE, Holds.JOINED_CACHE})
"""What a sliding window bounds."""

EXCHANGED = frozenset({Holds.QKV, Holds.ATTENTION})
"""What the host has of the micro-batches that it attends for."""


@dataclass(frozen=True, slots=True)
class Shortage:
    """A memory that a policy does not fit."""

    tier: str
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

    def tiers(self) -> dict[str, Mapping[str, int]]:
        """The plans of all tiers."""
        return {tier: getattr(self, tier) for tier in Tier}

    def peak_bytes(self) -> dict[str, int]:
        """Each tier's total; pinned memory is counted in the host's too."""
        return {tier: sum(parts.values()) for tier, parts in self.tiers().items()}

    def shortages(self, hardware: Hardware) -> list[Shortage]:
        """Every memory of the machine that the plan does not fit, the largest lack first."""
        peaks, capacities = self.peak_bytes(), capacity_bytes(hardware)
        short = [Shortage(t, peaks[t], limit) for t, limit in capacities.items() if peaks[t] > limit]
        return sorted(short, key=lambda shortage: -shortage.short_bytes)


def capacity_bytes(hardware: Hardware) -> dict[str, int]:
    """What each memory holds; `device` is one device's."""
    return {
        Tier.DEVICE: int(hardware.device_memory.capacity_bytes),
        Tier.HOST: int(hardware.host_memory.capacity_bytes),
        Tier.PINNED: int(hardware.pinned_bytes),
    }


def tensor_ranks(schedule: Schedule, num_devices: int) -> int:
    """Devices that share each tensor; one where each does its part of the batch, or has layers of its own."""
    return 1 if schedule.system.splits_batch or schedule.system.divides_layers else num_devices


def kept_tokens(layer: Layer, micro_batch: MicroBatch, step: int) -> int:
    """KV entries that one layer keeps of a micro-batch after `step`; a sliding window drops older ones."""
    context, window = micro_batch.context_tokens(step), layer.attention.window
    return context if window is None else min(context, window * micro_batch.num_requests)


def tokens_on_device(policy: Policy, micro_batch: MicroBatch, tokens: int) -> int:
    """Of so many KV entries of a micro-batch, those of the requests whose cache stays on the device."""
    return tokens * policy.resident_requests(micro_batch.num_requests) // micro_batch.num_requests


def kv_bytes(model: Model, policy: Policy, batch: Batch, step: int) -> int:
    """The whole KV cache after `step`, wherever it lives."""
    return _cache_bytes(model, policy, batch, batch.alike, lambda layer, one: kept_tokens(layer, one, step))


def kv_bytes_on_device(model: Model, policy: Policy, batch: Batch, step: int, shape: PipelineShape) -> int:
    """Of it, after `step`, what stays on the device: of some requests, or of the micro-batches that attend there."""
    if shape.attending_on_device:
        there = Counter(one for j, one in enumerate(batch.micro_batches) if not shape.kv_on_host(j))
        return _cache_bytes(model, policy, batch, there, lambda layer, one: kept_tokens(layer, one, step))
    if not policy.kv_on_device:
        return 0

    def stays(layer: Layer, one: MicroBatch) -> int:
        return tokens_on_device(policy, one, kept_tokens(layer, one, step))

    return _cache_bytes(model, policy, batch, batch.alike, stays)


def _cache_bytes_of_host_layers(placement: Placement, policy: Policy, batch: Batch) -> tuple[int, int]:
    """At its longest, the KV cache of layers that run on the host: all of it, and what a policy has of it elsewhere."""
    whole = on_device = 0
    for (layer, split), count in zip(placement.distinct, placement.counts, strict=True):
        for one, times in batch.alike.items() if split.layer_on_host else ():
            tokens = kept_tokens(layer, one, batch.gen_len - 1)
            each = count * times * batch.copies * layer.kv_bytes_per_token(policy.cache_bits(placement.model))
            whole += each * tokens
            on_device += each * tokens_on_device(policy, one, tokens)
    return whole, on_device


def _cache_bytes(
    model: Model,
    policy: Policy,
    batch: Batch,
    alike: Mapping[MicroBatch, int],
    tokens: Callable[[Layer, MicroBatch], int],
) -> int:
    def of_layer(layer: Layer) -> int:
        kept = sum(count * tokens(layer, one) for one, count in alike.items())
        return batch.copies * kept * layer.kv_bytes_per_token(policy.cache_bits(model))

    return model.over_layers(of_layer)


def plan_memory(
    schedule: Schedule,
    shape: PipelineShape,
    policy: Policy,
    model: Model,
    batch: Batch,
    num_devices: int = 1,
    loaded: Sequence[MicroBatch] = (),
) -> MemoryPlan:
    """Plan the memory of a whole generation: weights, KV cache at its longest, activations, buffers, staging.

    In a stream, `loaded` are micro-batches whose KV cache comes to the device, each with the most that may come.
    """
    cache = kv_bytes(model, policy, batch, batch.gen_len - 1)
    placement, place = Placement.of(policy, schedule, model), ExpertPlace
    cache_on_device = kv_bytes_on_device(model, policy, batch, batch.gen_len - 1, shape)
    cache_of_host, elsewhere = _cache_bytes_of_host_layers(placement, policy, batch)
    cache_on_device -= elsewhere
    others, others_of_host = _non_experts(model), placement.non_expert_bytes_on_host()
    buffers = _Buffers(schedule, shape, policy, model, batch, loaded)
    ranks = tensor_ranks(schedule, num_devices)
    shared = {
        MemoryPart.EMBEDDING_AND_HEAD: model.resident_bytes() - others,
        MemoryPart.NON_EXPERTS: 0 if shape.streams_non_experts else others - others_of_host,
        MemoryPart.RESIDENT_EXPERTS: placement.experts_bytes(place.DEVICE),
        MemoryPart.UNPACKED_EXPERTS: _unpacked_bytes(policy, placement, len(batch.micro_batches)),
        MemoryPart.KV_CACHE: cache_on_device,
    }
    device = Counter[str]({part: -(-size // num_devices) for part, size in shared.items()})
    device[MemoryPart.ACTIVATIONS] = activation_bytes(shape, placement, batch, ranks)
    fetches = any(split.fetched for _, split in placement.distinct)
    kept = place.DEVICE if schedule.system.caches_experts and fetches else place(0)  # what a cache drops is not lost
    host = Counter[str](
        {
            MemoryPart.STREAMED_WEIGHTS: placement.experts_bytes(place.STREAMED | place.FETCHED | kept)
            + (others - others_of_host if shape.streams_non_experts else 0),
            MemoryPart.NON_EXPERTS: others_of_host,
            MemoryPart.ACTIVATIONS: batch.copies * host_activation_bytes(placement, batch),
            MemoryPart.HOST_EXPERTS: placement.experts_bytes(place.HOST),
            MemoryPart.KV_CACHE: cache - cache_on_device,
        }
    )
    pinned = _locked_weights(policy, placement)
    if layout_of(schedule, shape).buffers["kv"].tier is Tier.PINNED:
        pinned[MemoryPart.KV_CACHE] = cache - cache_on_device - cache_of_host
    for tier, part, whole, size in buffers.bytes():
        if tier is Tier.DEVICE:
            device[part] += size if whole else -(-size // ranks)
        else:
            host[part] += batch.copies * size
        if tier is Tier.PINNED:
            pinned[part] += batch.copies * size
    return MemoryPlan(*(dict(+parts) for parts in (device, host, pinned)))


def _locked_weights(policy: Policy, placement: Placement) -> Counter[str]:
    """Page-locked weights: of each layer the first ones, those of the host's experts last."""
    found = Counter[str]()
    for kind, count in enumerate(placement.counts):
        layer, split = placement.distinct[kind]
        locked = policy.locked_bytes(placement.moved_bytes(kind))
        stays = placement.prefill_on_host or split.layer_on_host
        others = 0 if stays else split.on_host * layer.expert_bytes(placement.expert_bits)
        streamed = min(locked, placement.moved_bytes(kind) - others)
        found[MemoryPart.STREAMED_WEIGHTS] += count * streamed
        found[MemoryPart.HOST_EXPERTS] += count * (locked - streamed)
    return found


def _unpacked_bytes(policy: Policy, placement: Placement, num_micro_batches: int) -> int:
    """Experts as wide as the model computes, where a policy stores them otherwise, and those that are being unpacked.

    Of the layer that needs most.
    """
    model, needed = placement.model, 0
    if not unpacks_experts(policy, model):
        return 0
    for layer, split in placement.distinct:
        count, one = layer.num_experts, layer.expert_bytes(model.activation_bits)
        if not count or split.layer_on_host or not are_unpacked(split, prefill_on_host=placement.prefill_on_host):
            continue
        unpacked = unpacked_experts(count, num_micro_batches, one) * one
        packed = unpacked_at_once(count, one) * layer.expert_bytes(policy.expert_bits(model))
        needed = max(needed, unpacked + packed)
    return needed


class _Buffers:
    """Bytes of the buffers of a schedule's layout."""

    def __init__(
        self,
        schedule: Schedule,
        shape: PipelineShape,
        policy: Policy,
        model: Model,
        batch: Batch,
        loaded: Sequence[MicroBatch],
    ) -> None:
        self._loaded = loaded
        self._parts = layout_of(schedule, shape).parts
        self._shape, self._policy, self._model, self._batch = shape, policy, model, batch
        self._placement = Placement.of(policy, schedule, model)
        self._cache_bits = policy.cache_bits(model)
        requests, tokens = batch.num_requests // batch.copies, batch.prompt_tokens // batch.copies
        self._all = {MicroBatch(requests, tokens, 0, 0): 1}  # what grows with tokens adds up
        self._of_host = self._all
        if shape.attending_on_device:
            self._of_host = Counter(one for j, one in enumerate(batch.micro_batches) if shape.kv_on_host(j))

    def bytes(self) -> Iterator[tuple[Tier, str, bool, int]]:
        """Tier, part, whether each of several devices holds all of it, and bytes: of the layer that needs most."""
        for (tier, part, whole), buffers in self._parts.items():
            kinds = range(len(self._placement.distinct))
            of_layers = [sum(self._of_layer(one, kind) for one in buffers) for kind in kinds]
            yield tier, part, whole, max(of_layers)

    def _of_layer(self, buffer: Buffer, kind: int) -> int:
        """All slots of a buffer, if each were filled by this layer."""
        holds, (layer, split) = buffer.holds, self._placement.distinct[kind]
        if split.layer_on_host and holds not in (Holds.HIDDEN, Holds.PROMPT_HIDDEN):
            return 0
        if holds is Holds.WEIGHTS or holds is Holds.STAGED:
            streamed = self._placement.streamed_bytes(kind, in_prefill=True)
            locked = self._policy.locked_bytes(self._placement.moved_bytes(kind)) if holds is Holds.STAGED else 0
            return buffer.turns * max(0, streamed - locked)
        if holds is Holds.FETCHED:
            asked = max(self._routed_tokens(self._shape.group(group)) for group in range(self._shape.num_groups))
            count = min(split.fetched, asked * layer.top_k)
            return buffer.turns * count * layer.expert_bytes(self._placement.expert_bits)
        if holds is Holds.LOADED_CACHE:
            most = max((kept_tokens(layer, one, 0) for one in self._loaded), default=0)
            return buffer.turns * most * layer.kv_bytes_per_token(self._cache_bits)
        if buffer.by is By.TURN:
            return buffer.turns * max(self._slot(holds, layer, one) for one in self._batch.alike)
        many = self._batch.alike if holds in KEPT else self._all
        if holds in EXCHANGED and buffer.tier is not Tier.DEVICE:
            many = self._of_host
        outputs = bool(split.places & ON_DEVICE) + (layer.shared is not None) if holds is Holds.DEVICE_OUTPUT else 1
        return outputs * sum(count * self._slot(holds, layer, one) for one, count in many.items())

    def _routed_tokens(self, group: range) -> int:
        """The most tokens whose experts a group computes at once, apart from the rest of their layer."""
        mine = self._batch.micro_batches[group.start : group.stop]
        return sum(one.prompt_tokens if self._shape.splits_experts(0) else one.num_requests for one in mine)

    def _slot(self, holds: Holds, layer: Layer, one: MicroBatch) -> int:
        if holds in KEPT:
            return self._kept(holds, layer, one) * layer.kv_bytes_per_token(self._cache_bits)
        bits = self._model.activation_bits
        if holds in OF_EXPERTS:
            of_prompts = self._shape.splits_experts(0) and holds not in IN_DECODE
            tokens = one.prompt_tokens if of_prompts else one.num_requests
            each = routed_bytes(layer, bits) if holds in ROUTED else layer.hidden_bytes_per_token(bits)
            return tokens * each if layer.num_experts else 0
        tokens = one.prompt_tokens if holds is Holds.PROMPT_HIDDEN else one.num_requests
        return packed_bytes(tokens * self._width(holds, layer), bits)

    def _kept(self, holds: Holds, layer: Layer, one: MicroBatch) -> int:
        """Tokens of a layer's KV cache in one slot."""
        if holds is Holds.PROMPT_CACHE:
            return kept_tokens(layer, one, 0)
        kept = kept_tokens(layer, one, self._batch.gen_len - 1)
        stays = tokens_on_device(self._policy, one, kept)
        if holds is Holds.JOINED_CACHE:
            return kept if layer.attention.latent and stays else 0
        return kept - stays

    def _width(self, holds: Holds, layer: Layer) -> int:
        if holds is Holds.HIDDEN or holds is Holds.PROMPT_HIDDEN:
            return layer.hidden_size
        if self._batch.gen_len == 1:
            return 0  # nothing is exchanged with the host
        attention = layer.attention
        sent = attention.sent_query_width + attention.cached_width
        return sent if holds is Holds.QKV else attention.returned_width


def routed_bytes(layer: Layer, bits: float) -> int:
    """What goes with one token to its experts: its hidden state in so many bits, which they are, and their weights."""
    return layer.hidden_bytes_per_token(bits) + layer.top_k * (INDEX_BYTES + WEIGHT_BYTES)


def _non_experts(model: Model) -> int:
    return model.over_layers(lambda layer: layer.non_expert_bytes(model.other_bits))


def activation_bytes(shape: PipelineShape, placement: Placement, batch: Batch, num_devices: int) -> int:
    """Working set of the largest micro-batch in prefill, on one device: the layer that needs most, or the logits.

    Or that of the largest group in decode.
    """
    model = placement.model
    prompt_tokens = max(one.prompt_tokens for one in batch.alike)
    scored = max(one.num_requests * one.max_prompt_tokens**2 for one in batch.alike)
    requests = max(one.num_requests for one in batch.alike)
    needed = requests * model.vocab_size * LOGIT_BYTES // num_devices
    together = prompt_tokens
    if shape.experts:
        groups = [batch.micro_batches[one.start : one.stop] for one in map(shape.group, range(shape.num_groups))]
        together = max(together, *(sum(one.num_requests for one in mine) for mine in groups))
        if shape.splits_experts(0):
            together = max(sum(one.prompt_tokens for one in mine) for mine in groups)
    for layer, split in placement.distinct:
        if split.layer_on_host:
            continue
        attention = _attention_numbers(layer, prompt_tokens, scored, num_devices)
        there = split.resident + split.streamed + split.fetched if shape.splits_experts(0) else layer.num_experts
        in_parts = 0 < split.resident < there and placement.expert_bits == model.expert_bits
        held = _feed_forward_held(layer, num_devices, in_parts, routed=there > 0)
        feed_forward = together * (2 * layer.hidden_size + held)
        numbers = packed_bytes(round(max(attention, feed_forward)), model.activation_bits)
        needed = max(needed, numbers + together * _routing_bytes(layer))
    return needed


def host_activation_bytes(placement: Placement, batch: Batch) -> int:
    """The same of layers that run on the host, for the one that needs most; each computes all of its experts there."""
    tokens = max(one.prompt_tokens for one in batch.alike)
    scored = max(one.num_requests * one.max_prompt_tokens**2 for one in batch.alike)
    needed = 0
    for layer in (layer for layer, split in placement.distinct if split.layer_on_host):
        held = _feed_forward_held(layer, 1, split=False, routed=layer.num_experts > 0)
        numbers = max(_attention_numbers(layer, tokens, scored, 1), tokens * (2 * layer.hidden_size + held))
        whole = packed_bytes(round(numbers), placement.model.activation_bits) + tokens * _routing_bytes(layer)
        needed = max(needed, whole)
    return needed


def _attention_numbers(layer: Layer, tokens: int, scored: int, num_devices: int) -> float:
    """Numbers held by the prompts in attention, of which `scored` pairs of tokens."""
    # with sinks no kernel spares the matrices of scores: before and after the softmax, and shifted
    scores = 3 * layer.attention.num_query_heads * scored / num_devices if layer.attention.sinks else 0.0
    return tokens * (2 * layer.hidden_size + _attention_held(layer, num_devices)) + scores


def _routing_bytes(layer: Layer) -> int:
    """A token's scores of all experts, and of each that it uses the weight, the number, and the place in the order."""
    return 8 * layer.num_experts + 48 * layer.top_k


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


def _feed_forward_held(layer: Layer, num_devices: int, split: bool, *, routed: bool) -> float:
    """Numbers a token holds in the experts: all of its routed experts are computed at once, in the order of experts.

    Mostly that is input, gate, up and their product (the optimizer of MoE-Lightning counts the same). With experts in
    two places each part gathers its own tokens, which may be all of them, and adds to a common result. Without any
    `routed` ones on the device, tokens hold nothing there for them.
    """
    always = 3 * sum(one.intermediate_size for one in (layer.shared, layer.dense) if one) / num_devices
    if layer.expert is None or not routed:
        return always
    each = layer.expert.held_numbers(num_devices) + split * layer.hidden_size
    return max(layer.computed_experts * each, always) + layer.hidden_size * (bool(layer.shared) + split)
