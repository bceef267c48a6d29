"""FlexGen with CPU attention (schedule S3 of MoE-Lightning's figure 6)."""

from sim.schedule.base import Issues, Schedule, issue, next_layer
from sim.schedule.dependencies import BARRIER
from sim.schedule.shape import PipelineShape, Place
from sim.schedule.task import Op


class FlexGenC(Schedule):
    """Attention goes to the CPU and back while the GPU waits for it, one micro-batch after the other."""

    name = "flexgen-c"
    summary = "CPU attention in turn with the GPU, whole-layer weights, a full barrier after each micro-batch"
    attention = (Place.CPU,)
    prefill_barrier = True

    def decode(self, shape: PipelineShape, step: int, more: bool) -> Issues:
        for layer in range(shape.num_layers):
            for j in range(shape.num_micro_batches):
                yield from self.attend_on_cpu(step, layer, j)
                yield issue(Op.LOAD_HIDDEN, step, layer, j)
                if j == 0:
                    yield from self.load_layer(shape, *next_layer(shape, step, layer, more))
                yield from self.finish_layer(shape, step, layer, j)
                yield BARRIER
