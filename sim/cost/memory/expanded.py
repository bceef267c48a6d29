"""What a model makes of its KV cache in decode before it attends to it: keys and values of every head (MLA)."""

from collections.abc import Mapping
from types import MappingProxyType

from sim.cost.memory.activations import activation_bytes
from sim.problem import Batch, MicroBatch, Placement, packed_bytes
from sim.schedule import Holds, PipelineShape, Place

ATTEND_AHEAD = 3
"""So many micro-batches have attended on the device, or do, before the first of them goes on: cgopipe's look ahead."""


def working_bytes(
    shape: PipelineShape,
    placement: Placement,
    batch: Batch,
    num_devices: int,
    loaded: Mapping[Holds, MicroBatch] = MappingProxyType({}),
) -> int:
    """What one device holds while it computes, in prefill or in decode, whichever needs more.

    In a stream, `loaded` are micro-batches whose KV cache comes to the device.
    """
    waiting, at_once = _expanded_bytes(shape, placement, batch, loaded)
    computed = activation_bytes(shape, placement, batch, num_devices) + waiting // num_devices
    return max(computed, at_once // num_devices)


def _expanded_bytes(
    shape: PipelineShape, placement: Placement, batch: Batch, loaded: Mapping[Holds, MicroBatch]
) -> tuple[int, int]:
    """On the device, for the layer that needs most: of those that wait beside prompts, and of a step without any.

    Who attended on the device holds them until it goes on. Beside prompts all do that ahead; `loaded` says what they
    attend to.
    """
    on_device, n = shape.attention is Place.GPU, shape.num_micro_batches
    last, beside = batch.gen_len - 1, loaded.get(Holds.ATTENDED_CACHE)
    context = max(one.context_tokens(last) for one in batch.alike) if beside is None else beside.prompt_tokens
    waiting = shape.num_decoding if beside and on_device else 0
    at_once = max(1, waiting, min(n, ATTEND_AHEAD) if on_device else 1)
    each = max(
        (
            packed_bytes(context * layer.attention.expanded_width, placement.model.activation_bits)
            for layer, split in placement.distinct
            if not split.layer_on_host and last > 0
        ),
        default=0,
    )
    return waiting * each, at_once * each
