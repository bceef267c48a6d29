"""DeepSpeed ZeRO-Inference: parameters offloaded, one large batch."""

from sim.schedule.base import Issues, Schedule, next_layer
from sim.schedule.shape import PipelineShape, Place, System


class Zero(Schedule):
    """The next layer's weights are fetched while this layer computes; the KV cache stays on the device.

    On several devices parameters are partitioned and gathered before use, and requests are divided (ZeRO stage 3).
    """

    name = "zero"
    summary = "next layer's weights fetched during this layer's compute, KV on the device (DeepSpeed ZeRO-Inference)"
    system = System(
        (Place.GPU,),
        streams_non_experts=True,
        kv_on_device=True,
        offloads_hidden=False,
        one_batch=True,
        pins_weights=True,
        splits_batch=True,
        gathers_weights=True,
    )

    def decode(self, shape: PipelineShape, step: int, more: bool) -> Issues:
        for layer in range(shape.num_layers):
            yield from self.load_layer(shape, *next_layer(shape, step, layer, more))
            for j in range(shape.num_micro_batches):
                yield from self.attend_on_gpu(step, layer, j)
                yield from self.finish_layer(shape, step, layer, j)
