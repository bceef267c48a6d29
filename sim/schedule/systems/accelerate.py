"""Hugging Face Accelerate's offload hooks: copy a module's weights, compute, drop them."""

from sim.schedule.base import Issues, Schedule
from sim.schedule.shape import PipelineShape, Place, System
from sim.schedule.tracking import BARRIER


class Accelerate(Schedule):
    """Each layer's weights are copied, then the layer is computed; nothing overlaps.

    A hook of each module copies what the module needs when it is called: an expert that no token uses is not.
    """

    name = "accelerate"
    summary = "each layer's weights copied, then computed; nothing overlaps (Hugging Face Accelerate)"
    system = System(
        (Place.GPU,),
        streams_non_experts=True,
        kv_on_device=True,
        offloads_hidden=False,
        one_batch=True,
        fetches_modules=True,
    )

    def prefill(self, shape: PipelineShape, more: bool) -> Issues:
        yield from self.decode(shape, 0, more)

    def decode(self, shape: PipelineShape, step: int, more: bool) -> Issues:
        for layer in range(shape.num_layers):
            yield from self.load_layer(shape, step, layer)
            yield BARRIER
            for j in range(shape.num_micro_batches):
                yield from self.attend_on_gpu(step, layer, j)
                yield from self.finish_layer(shape, step, layer, j)
            yield BARRIER
