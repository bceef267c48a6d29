"""FlexGen with CPU attention (schedule S3 of MoE-Lightning's figure 6)."""

from sim.schedule.base import Issues, Schedule, issue
from sim.schedule.shape import PipelineShape, Place, System
from sim.schedule.task import Op
from sim.schedule.tracking import BARRIER


class FlexGenC(Schedule):
    """As FlexGen, but attention goes to the CPU and back while the GPU waits for it, one micro-batch after the other.

    FlexGen attends with PyTorch operations on a 32-bit workspace, which know no groups of query heads.
    """

    name = "flexgen-c"
    summary = (
        "CPU attention in turn with the GPU, then the experts, whole-layer weights; a full barrier after each turn"
    )
    system = System((Place.CPU,), pins_activations=False, prefill_barrier=True, splits_batch=True, expands_cache=True)

    def prefill(self, shape: PipelineShape, more: bool) -> Issues:
        yield from super().prefill(shape, more=False)  # decode fetches its own weights

    def decode(self, shape: PipelineShape, step: int, more: bool) -> Issues:
        last = shape.num_micro_batches - 1
        for layer in range(shape.num_layers):
            yield from self.load_layer(shape, step, layer)
            for j in range(shape.num_micro_batches):
                yield from self.attend_on_cpu(step, layer, j)
                if j == last:
                    yield issue(Op.LOAD_HIDDEN, step, layer, 0)
                yield BARRIER
            for j in range(shape.num_micro_batches):
                if j < last:
                    yield issue(Op.LOAD_HIDDEN, step, layer, j + 1)
                yield from self.finish_layer(shape, step, layer, j)
                yield BARRIER
