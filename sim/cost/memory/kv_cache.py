"""The KV cache in bytes: all of it, and what of it stays on the device."""

from collections import Counter
from collections.abc import Callable, Mapping

from sim.problem import Batch, Layer, MicroBatch, Model, Placement, Policy, within_window
from sim.schedule import PipelineShape


def kept_tokens(layer: Layer, micro_batch: MicroBatch, step: int) -> int:
    """KV entries that one layer keeps of a micro-batch after `step`; a sliding window drops older ones."""
    context, window = micro_batch.context_tokens(step), layer.attention.window
    return int(within_window(context, window and window * micro_batch.num_requests))


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


def cache_bytes_of_host_layers(placement: Placement, policy: Policy, batch: Batch) -> tuple[int, int]:
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
