"""FlexGen's zig-zag schedule with GPU attention (schedule S4 of MoE-Lightning's figure 6)."""

from sim.schedule.base import Issues, Schedule, issue, next_layer
from sim.schedule.shape import PipelineShape, Place, System
from sim.schedule.task import Op
from sim.schedule.tracking import BARRIER


class FlexGen(Schedule):
    """Attention and experts are two layers, each for all micro-batches before the next; all lanes meet after each turn.

    In a turn of the attention the next micro-batch's KV cache is fetched and the last one's stored. The experts'
    weights are all issued at the attention's first turn, so its barrier waits for them; beside the experts nothing
    but the next layer's first KV cache is fetched. Neither weights nor KV cache are page-locked (FlexGen's cache
    allocator switches that off for its memory overhead). Several devices are stages of a pipeline.
    """

    name = "flexgen"
    summary = "GPU attention with the next KV cache fetched beside it, then the experts; a full barrier after each turn"
    system = System((Place.GPU,), pins_activations=False, prefill_barrier=True, splits_batch=True)

    def prefill(self, shape: PipelineShape, more: bool) -> Issues:
        yield from super().prefill(shape, more=False)  # decode fetches its own weights
        if more and shape.streams_kv:
            yield issue(Op.LOAD_KV, 1, 0, 0)

    def decode(self, shape: PipelineShape, step: int, more: bool) -> Issues:
        last = shape.num_micro_batches - 1
        for layer in range(shape.num_layers):
            yield from self.load_layer(shape, step, layer)
            for j in range(shape.num_micro_batches):
                if j > 0 and shape.streams_kv:
                    yield issue(Op.STORE_KV, step, layer, j - 1)
                if j < last and shape.streams_kv:
                    yield issue(Op.LOAD_KV, step, layer, j + 1)
                yield from self.attend_on_gpu(step, layer, j)
                yield BARRIER
            if shape.streams_kv:
                yield issue(Op.STORE_KV, step, layer, last)
            for j in range(shape.num_micro_batches):
                after = next_layer(shape, step, layer, more)
                if j == last and shape.streams_kv and after[0] >= 0:
                    yield issue(Op.LOAD_KV, *after, 0)
                yield from self.finish_layer(shape, step, layer, j)
                yield BARRIER
