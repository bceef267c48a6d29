"""llama.cpp with the routed experts of some layers on the host: `--n-cpu-moe`."""

from sim.schedule.base import Issues, next_layer
from sim.schedule.experts import SplitExperts
from sim.schedule.shape import ExpertPlace, PipelineShape, Place, System
from sim.schedule.tracking import BARRIER


class NCpuMoe(SplitExperts):
    """The host computes the experts of whole layers while the GPU waits, and the GPU all else while the host waits.

    A graph runs one operation after the other, wherever each is. In prefill, of more than a few tokens, the weights of
    the host's experts are copied to the device, layer by layer, before they are used (llama.cpp, "op offload"). Layers
    may also be left to the host whole (`-ngl`: all but the last so many).
    """

    name = "n-cpu-moe"
    summary = "routed experts of whole layers on the CPU, GPU and CPU in turn (llama.cpp --n-cpu-moe)"
    system = System(
        (Place.GPU,),
        kv_on_device=True,
        offloads_hidden=False,
        one_batch=True,
        experts=ExpertPlace.DEVICE | ExpertPlace.HOST,
        others=ExpertPlace.HOST,
        whole_layers=True,
        runs_layers_on_host=True,
        divides_layers=True,
        prefill_experts=(Place.GPU, Place.CPU),
    )

    def prefill(self, shape: PipelineShape, more: bool) -> Issues:
        if shape.splits_experts(0):
            yield from super().prefill(shape, more)
            return
        for layer in shape.layers_on_device:
            yield from self.load_layer(shape, 0, layer)
            yield BARRIER
            yield from self.host_layers(shape, 0, layer, range(shape.num_micro_batches))
            for j in range(shape.num_micro_batches):
                yield from self.attend_on_gpu(0, layer, j)
                yield from self.finish_layer(shape, 0, layer, j)
            yield BARRIER
        yield from self.last_host_layers(shape, 0)
        yield from self.load_layer(shape, *next_layer(shape, 0, shape.num_layers - 1, more))
