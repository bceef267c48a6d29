"""What layers hold while they compute, in bytes: on the device, and of layers that run on the host."""

from math import ceil

from sim.cost.memory.kv_cache import CacheContent
from sim.problem import Batch, Layer, MicroBatch, Model, Placement, packed_bytes
from sim.schedule import PipelineShape

SCORE_BYTES = 4
"""The logits of the last position in 32 bits, which `generate()` copies them to before it looks for the highest."""

CHOSEN_AT_ONCE = 8
"""For so many requests at a time tokens are drawn, or scores changed: sorting takes several times what scores take."""

CHOOSING_BYTES = 48
"""What that holds of a score at most: typical-p sorts scores with their places, with what it sorts by, and sums up."""


def activation_bytes(shape: PipelineShape, placement: Placement, batch: Batch, num_devices: int) -> int:
    """Working set of the largest micro-batch in prefill, on one device: the layer that needs most, or the logits.

    Or that of the largest group in decode.
    """
    model = placement.model
    prompt_tokens = max(one.prompt_tokens for one in batch.alike)
    scored = max(one.num_requests * one.max_prompt_tokens**2 for one in batch.alike)
    requests = max(one.num_requests for one in batch.alike)
    needed = _head_bytes(model, requests, sampled=batch.sampled)  # whoever shares the head chooses among all words
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
        in_parts = 0 < split.resident < there and placement.widths.experts == model.widths.experts
        held = _feed_forward_held(layer, num_devices, in_parts, routed=there > 0)
        feed_forward = together * (2 * layer.hidden_size + held)
        numbers = packed_bytes(round(max(attention, feed_forward)), model.activation_bits)
        needed = max(needed, numbers + together * _routing_bytes(layer))
    return needed + _mask_bytes(model, batch)


def _mask_bytes(model: Model, batch: Batch) -> int:
    """What says which tokens of a prompt attend to which: every micro-batch has its own until its prompts are computed.

    A mask is made of another as large, which is gone then.
    """
    each = {one: one.num_requests * one.max_prompt_tokens**2 * _mask_width(model, one) for one in batch.alike}
    making = max((one.num_requests * one.max_prompt_tokens**2 for one in batch.alike if each[one]), default=0)
    return making + sum(count * each[one] for one, count in batch.alike.items())


def _mask_width(model: Model, one: MicroBatch) -> int:
    """Bytes of a micro-batch's masks for each pair of tokens: one mask for all layers that attend in the same way.

    Kernels need none for prompts without padding or window. Where attention has sinks it is no kernel, and masks are
    added to scores.
    """
    width = 0
    attentions = [layer.attention for layer in model.distinct_layers if layer.attention.cached_width]
    for window, sinks in {(one.window, one.scored_heads > 0) for one in attentions}:
        cut = window is not None and window < one.max_prompt_tokens
        width += ceil(model.activation_bits / 8) if sinks else bool(one.padding_tokens) | cut
    return width


def _head_bytes(model: Model, requests: int, *, sampled: bool) -> int:
    """The scores of a micro-batch for each word of the vocabulary, as the head makes them and as they are compared."""
    scores = requests * (packed_bytes(model.vocab_size, model.activation_bits) + SCORE_BYTES * model.vocab_size)
    return scores + sampled * min(requests, CHOSEN_AT_ONCE) * CHOOSING_BYTES * model.vocab_size


def host_activation_bytes(placement: Placement, batch: Batch) -> int:
    """The same of layers that run on the host, for the one that needs most; each computes all of its experts there."""
    tokens = max(one.prompt_tokens for one in batch.alike)
    scored = max(one.num_requests * one.max_prompt_tokens**2 for one in batch.alike)
    needed = 0
    for layer in (layer for layer, split in placement.distinct if split.layer_on_host):
        held = _feed_forward_held(layer, 1, split=False, routed=layer.num_experts > 0)
        numbers = max(_attention_numbers(layer, tokens, scored, 1), tokens * (2 * layer.hidden_size + held))
        whole = packed_bytes(round(numbers), placement.model.activation_bits) + tokens * _routing_bytes(layer)
        needed = max(needed, whole, _in_order_bytes(placement.model, layer, batch))
    return needed


def _in_order_bytes(model: Model, layer: Layer, batch: Batch) -> int:
    """What a layer's own code gets of a window that tokens have gone beyond: all that is kept, in order once more."""
    last = batch.gen_len - 1
    kept = {one: CacheContent.of(layer, one, last).tokens for one in batch.alike}
    most = max((tokens for one, tokens in kept.items() if tokens < one.context_tokens(last)), default=0)
    return most * layer.kv_bytes_per_token(model.activation_bits)


def _attention_numbers(layer: Layer, tokens: int, scored: int, num_devices: int) -> float:
    """Numbers held by the prompts in attention, of which `scored` pairs of tokens."""
    # with sinks no kernel spares the matrices of scores: before and after the softmax, and shifted
    attention = layer.attention
    scores = 3 * attention.scored_heads * scored / num_devices
    return tokens * (2 * layer.hidden_size + attention.held_width / num_devices) + scores


def _routing_bytes(layer: Layer) -> int:
    """A token's scores of all experts, and of each that it uses the weight, the number, and the place in the order.

    Where experts are computed in turn, a table of who uses which takes the place of the order.
    """
    if layer.computes_experts_in_turn:
        return 8 * layer.num_experts + (8 * layer.num_experts + 32) * layer.top_k
    return 8 * layer.num_experts + 48 * layer.top_k


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
