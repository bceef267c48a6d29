"""What layers keep of requests from step to step: KV cache, index, states; in bytes, and what stays on the device."""

from collections import Counter
from collections.abc import Callable, Mapping
from math import ceil
from typing import NamedTuple, Self

from sim.problem import Batch, Layer, MicroBatch, Model, Placement, Policy
from sim.schedule import PipelineShape


class CacheContent(NamedTuple):
    """What one layer keeps of the requests of a micro-batch, or what a step adds to it."""

    tokens: int = 0
    """Entries of the KV cache."""
    keys: int = 0
    """Keys of an index over them."""
    requests: int = 0
    """Those whose state is kept, which is as large whatever they have had."""

    @classmethod
    def of(cls, layer: Layer, micro_batch: MicroBatch, step: int) -> Self:
        """After `step`."""
        return cls.of_context(layer, micro_batch.context_tokens(step), micro_batch.num_requests)

    @classmethod
    def of_context(cls, layer: Layer, context: int, requests: int) -> Self:
        """Of requests that have had so many tokens together."""
        keeping = layer.attention.keeping
        return cls(keeping.kept(context, requests), keeping.indexed(context, requests), requests)

    @classmethod
    def new(cls, requests: int) -> Self:
        """What one more token of each of so many requests adds; of a state, all of it."""
        return cls(requests, requests, requests)

    def on_device(self, policy: Policy, micro_batch: MicroBatch) -> Self:
        """The part of the requests whose cache stays on the device."""
        count, of = policy.resident_requests(micro_batch.num_requests), micro_batch.num_requests
        return type(self)(*(number * count // of for number in self))

    def without(self, other: Self) -> Self:
        """What is left of it."""
        return type(self)(*(mine - theirs for mine, theirs in zip(self, other, strict=True)))

    def bytes(self, layer: Layer, bits: float) -> int:
        """In a cache whose numbers have so many bits."""
        entries = self.tokens * layer.kv_bytes_per_token(bits) + self.keys * layer.index_bytes_per_token(bits)
        return entries + self.requests * layer.attention.state_bytes


def kv_bytes(model: Model, policy: Policy, batch: Batch, step: int, ranks: int = 1) -> int:
    """The whole KV cache after `step`, wherever it lives; all that so many devices have which share each tensor."""
    return _cache_bytes(model, policy, batch, batch.alike, lambda layer, one: CacheContent.of(layer, one, step), ranks)


def kv_bytes_on_device(
    model: Model, policy: Policy, batch: Batch, step: int, shape: PipelineShape, ranks: int = 1
) -> int:
    """Of it, after `step`, what stays on the device: of some requests, or of the micro-batches that attend there."""
    if shape.attending_on_device:
        there = Counter(one for j, one in enumerate(batch.micro_batches) if not shape.kv_on_host(j))
        return _cache_bytes(model, policy, batch, there, lambda layer, one: CacheContent.of(layer, one, step), ranks)
    if not policy.kv_on_device:
        return 0

    def stays(layer: Layer, one: MicroBatch) -> CacheContent:
        return CacheContent.of(layer, one, step).on_device(policy, one)

    return _cache_bytes(model, policy, batch, batch.alike, stays, ranks)


def cache_bytes_of_host_layers(placement: Placement, policy: Policy, batch: Batch) -> tuple[int, int]:
    """At its longest, the KV cache of layers that run on the host: all of it, and what a policy has of it elsewhere."""
    whole = on_device = 0
    bits = policy.cache_bits(placement.model)
    for (layer, split), count in zip(placement.distinct, placement.counts, strict=True):
        for one, times in batch.alike.items() if split.layer_on_host else ():
            kept, alike = CacheContent.of(layer, one, batch.gen_len - 1), count * times * batch.copies
            whole += alike * kept.bytes(layer, bits)
            on_device += alike * kept.on_device(policy, one).bytes(layer, bits)
    return whole, on_device


def _cache_bytes(
    model: Model,
    policy: Policy,
    batch: Batch,
    alike: Mapping[MicroBatch, int],
    kept: Callable[[Layer, MicroBatch], CacheContent],
    ranks: int,
) -> int:
    bits = policy.cache_bits(model)

    def of_layer(layer: Layer) -> int:
        one_copy = batch.copies * sum(count * kept(layer, one).bytes(layer, bits) for one, count in alike.items())
        return ceil(one_copy * layer.attention.cache_copies(ranks))

    return model.over_layers(of_layer)
