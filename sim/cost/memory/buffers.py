"""The buffers of a schedule's layout in bytes: of each, all slots as large as the layer that needs most fills them."""

from collections import Counter
from collections.abc import Iterator, Mapping
from math import ceil

from sim.cost.memory.kv_cache import CacheContent
from sim.problem import Batch, Layer, MicroBatch, Model, Placement, Policy, packed_bytes
from sim.schedule import ON_DEVICE, Buffer, By, Holds, PipelineShape, Place, Schedule, Tier, layout_of

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


class BufferBytes:
    """Bytes of the buffers of a schedule's layout."""

    def __init__(
        self,
        schedule: Schedule,
        shape: PipelineShape,
        policy: Policy,
        model: Model,
        batch: Batch,
        loaded: Mapping[Holds, MicroBatch],
        ranks: int = 1,
    ) -> None:
        """`ranks` are devices that share each tensor, of which some may have the same of a cache."""
        self._ranks = ranks
        self._loaded = loaded
        self._parts = layout_of(schedule, shape).parts
        self._shape, self._policy, self._model, self._batch = shape, policy, model, batch
        self._placement = Placement.of(policy, schedule, model)
        self._cache_bits = policy.cache_bits(model)
        requests, tokens = batch.num_requests // batch.copies, batch.prompt_tokens // batch.copies
        self._all = {MicroBatch(requests, tokens, 0, 0): 1}  # what grows with tokens adds up
        self._of_host = self._all
        if shape.attending_on_device:
            there = enumerate(batch.micro_batches)
            self._of_host = Counter(one for j, one in there if shape.attends(j) is Place.CPU)

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
            return buffer.turns * count * layer.expert_bytes(self._placement.widths.experts)
        if holds in (Holds.LOADED_CACHE, Holds.ATTENDED_CACHE):
            most = CacheContent.of(layer, self._loaded[holds], 0) if holds in self._loaded else CacheContent()
            return ceil(buffer.turns * most.bytes(layer, self._cache_bits) * layer.attention.cache_copies(self._ranks))
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
            kept = self._kept(holds, layer, one).bytes(layer, self._cache_bits)
            return ceil(kept * layer.attention.cache_copies(self._ranks))
        bits = self._model.activation_bits
        if holds in OF_EXPERTS:
            of_prompts = self._shape.splits_experts(0) and holds not in IN_DECODE
            tokens = one.prompt_tokens if of_prompts else one.num_requests
            each = routed_bytes(layer, bits) if holds in ROUTED else layer.routed_bytes_per_token(bits)
            return tokens * each if layer.num_experts else 0
        tokens = one.prompt_tokens if holds is Holds.PROMPT_HIDDEN else one.num_requests
        return packed_bytes(tokens * self._width(holds, layer), bits)

    def _kept(self, holds: Holds, layer: Layer, one: MicroBatch) -> CacheContent:
        """What one slot has of a layer's KV cache."""
        if holds is Holds.PROMPT_CACHE:
            return CacheContent.of(layer, one, 0)
        kept = CacheContent.of(layer, one, self._batch.gen_len - 1)
        stays = kept.on_device(self._policy, one)
        if holds is Holds.JOINED_CACHE:
            return kept if layer.attention.joins_cache and stays.tokens else CacheContent()
        return kept.without(stays)

    def _width(self, holds: Holds, layer: Layer) -> int:
        if holds is Holds.HIDDEN or holds is Holds.PROMPT_HIDDEN:
            return layer.hidden_size
        if self._batch.gen_len == 1:
            return 0  # nothing is exchanged with the host
        attention = layer.attention
        sent = attention.sent_query_width + ceil(attention.new_width * attention.cache_copies(self._ranks))
        return sent if holds is Holds.QKV else attention.returned_width


def routed_bytes(layer: Layer, bits: float) -> int:
    """What goes with one token to its experts: its hidden state in so many bits, which they are, and their weights."""
    return layer.routed_bytes_per_token(bits) + layer.top_k * (INDEX_BYTES + WEIGHT_BYTES)
