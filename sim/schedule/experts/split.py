"""What schedules have in common that compute experts where their weights live: on the device, and on the host."""

from sim.schedule.base import Issues, Schedule, issue, next_layer
from sim.schedule.experts.slots import ASKED_FOR, ON_DEVICE, ExpertSlots
from sim.schedule.shape import ExpertPlace, PipelineShape, Place
from sim.schedule.task import DEFERRED, Op


class SplitExperts(Schedule):
    """Experts of a group of micro-batches at once, apart from the rest of the layer; shared ones go with the device's.

    Unless a schedule has another order, decode takes one group after the other through attention and experts. Prefill
    computes all on the device, like that of other schedules, or leaves experts where decode has them.
    """

    def layout(self, shape: PipelineShape) -> ExpertSlots:
        return ExpertSlots(shape, self.system)

    def prefill(self, shape: PipelineShape, more: bool) -> Issues:
        if not shape.splits_experts(0):
            yield from super().prefill(shape, more)
            return
        yield from self.load_layer(shape, 0, shape.first_on_device)
        for layer in shape.layers_on_device:
            yield from self.load_layer(shape, *next_layer(shape, 0, layer, more))
            for group in range(shape.num_groups):
                yield from self.host_layers(shape, 0, layer, shape.group(group))
                for j in shape.group(group):
                    yield from self.attend_on_gpu(0, layer, j)
                    if shape.kv_on_host(j):
                        yield issue(Op.STORE_KV, 0, layer, j)
                yield from self.experts(shape, 0, layer, group)
                yield from self.leave_experts(shape, 0, layer, group)
        yield from self.last_host_layers(shape, 0)

    def decode(self, shape: PipelineShape, step: int, more: bool) -> Issues:
        for layer in shape.layers_on_device:
            yield from self.load_layer(shape, *next_layer(shape, step, layer, more))
            for group in range(shape.num_groups):
                yield from self.host_layers(shape, step, layer, shape.group(group))
                for j in shape.group(group):
                    yield from self.attend(shape, step, layer, j)
                yield from self.experts(shape, step, layer, group)
                yield from self.leave_experts(shape, step, layer, group)
        yield from self.last_host_layers(shape, step)

    def experts(self, shape: PipelineShape, step: int, layer: int, group: int) -> Issues:
        """From the attention of a group to its experts, in every place; the host is asked first."""
        mine = shape.group(group)
        if not shape.splits_experts(step) or not shape.experts[layer]:
            for j in mine:
                yield issue(Op.POST_ATTN, step, layer, j)
            return
        for j in mine:
            yield issue(Op.ROUTE, step, layer, j)
        if shape.has_experts(layer, ASKED_FOR):
            yield issue(Op.OFFLOAD_TOKENS, step, layer, mine[0])
        if shape.has_experts(layer, ExpertPlace.FETCHED):
            yield issue(Op.FETCH_EXPERTS, step, layer, mine[0])
        if shape.has_experts(layer, ExpertPlace.HOST):
            yield issue(Op.HOST_EXPERTS, step, layer, mine[0])
        yield from self._deferred(shape, step, layer, mine[0])
        if shape.has_experts(layer, ON_DEVICE):
            yield issue(Op.DEVICE_EXPERTS, step, layer, mine[0])

    def _deferred(self, shape: PipelineShape, step: int, layer: int, first: int) -> Issues:
        """What the layer before has deferred to this one, and what of this layer the host computes late."""
        before = shape.deferred_to(step, layer)
        if before is not None:
            yield issue(Op.LOAD_OUTPUT, step, before, first, page=DEFERRED)
        if shape.defers(step, layer):
            yield issue(Op.HOST_EXPERTS, step, layer, first, page=DEFERRED)

    def leave_experts(self, shape: PipelineShape, step: int, layer: int, group: int) -> Issues:
        """What the host made of a group's tokens to the device, and after the last layer the heads."""
        mine = shape.group(group)
        if shape.has_experts(layer, ExpertPlace.HOST):
            yield issue(Op.LOAD_OUTPUT, step, layer, mine[0])
        for j in mine if layer == shape.num_layers - 1 else ():
            yield issue(Op.HEAD, step, micro_batch=j)

    def attend(self, shape: PipelineShape, step: int, layer: int, j: int) -> Issues:
        """PreAttn and attention in decode, where that runs."""
        if shape.attends(j) is Place.CPU:
            yield from self.attend_on_cpu(step, layer, j)
            return
        if shape.attends_beside_others(j):
            yield from self.attend_beside_others(shape, step, layer, j)
            return
        if shape.kv_on_host(j):
            yield issue(Op.LOAD_KV, step, layer, j)
        yield from self.attend_on_gpu(step, layer, j)
        if shape.kv_on_host(j):
            yield issue(Op.STORE_KV, step, layer, j)
