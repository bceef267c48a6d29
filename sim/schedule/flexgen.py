"""FlexGen's zig-zag schedule with GPU attention (schedule S4 of MoE-Lightning's figure 6)."""

from sim.schedule.base import Issues, Schedule, issue, next_layer
from sim.schedule.dependencies import BARRIER
from sim.schedule.shape import PipelineShape, Place
from sim.schedule.task import Op


class FlexGen(Schedule):
    """Per (layer, micro-batch): fetch the next KV cache, store the last one, compute; then all lanes meet.

    The next layer's weights are all issued at a layer's first micro-batch, so its barrier waits for them. Neither
    weights nor KV cache are page-locked (FlexGen's cache allocator switches that off for its memory overhead).
    """

    name = "flexgen"
    summary = "GPU attention, KV of the next micro-batch fetched during compute, a full barrier after each micro-batch"
    attention = (Place.GPU,)
    prefill_barrier = True

    def prefill(self, shape: PipelineShape, more: bool) -> Issues:
        yield from super().prefill(shape, more)
        if more and shape.streams_kv:
            yield issue(Op.LOAD_KV, 1, 0, 0)

    def decode(self, shape: PipelineShape, step: int, more: bool) -> Issues:
        turns = [(layer, j) for layer in range(shape.num_layers) for j in range(shape.num_micro_batches)]
        for (layer, j), before, after in zip(turns, [None, *turns], [*turns[1:], None], strict=False):
            if before is not None and shape.streams_kv:
                yield issue(Op.STORE_KV, step, *before)
            if j == 0:
                yield from self.load_layer(shape, *next_layer(shape, step, layer, more))
            if after is not None and shape.streams_kv:
                yield issue(Op.LOAD_KV, step, *after)
            yield from self.attend_on_gpu(step, layer, j)
            yield from self.finish_layer(shape, step, layer, j)
            yield BARRIER
        if shape.streams_kv:
            yield issue(Op.STORE_KV, step, *turns[-1])
            if more:
                yield issue(Op.LOAD_KV, step + 1, 0, 0)
