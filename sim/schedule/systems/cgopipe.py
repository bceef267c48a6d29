"""CGOPipe: weights travel in pages between the hidden states (MoE-Lightning, Algorithm 1)."""

from collections.abc import Sequence

from sim.schedule.base import Issues, Schedule, issue, next_layer
from sim.schedule.shape import PipelineShape, Place, System
from sim.schedule.task import Op

LOOKAHEAD = 2
"""Micro-batches by which PreAttn and CPU attention run ahead of PostAttn."""


class CGOPipe(Schedule):
    """CPU attention, GPU compute and the link all busy: the next layer's pages fill the gaps between hidden states.

    With attention on the GPU the KV cache of a micro-batch takes the place of its hidden states on the link. Some
    micro-batches may attend there while the CPU attends for others; their KV cache stays on the device. Beside prompts,
    which keep the GPU busy for long, all that decode are handed to the CPU ahead.
    """

    name = "cgopipe"
    summary = "paged weights between the hidden states, PreAttn and attention two micro-batches ahead (MoE-Lightning)"
    system = System((Place.CPU, Place.GPU), mixes_attention=True, paged=True, pinned_layers=1, pins_kv=True, mixes=True)

    def decode(self, shape: PipelineShape, step: int, more: bool) -> Issues:
        n = shape.num_micro_batches
        lookahead = n if shape.num_prompts else min(LOOKAHEAD, n)
        yield from self.begin_over_link(shape, step)
        for j in range(lookahead):
            yield from self.launch(shape, step, 0, j, more)
        for turn in range(shape.num_layers * n):
            layer, j = divmod(turn, n)
            if shape.attends(j) is Place.CPU:
                yield issue(Op.LOAD_HIDDEN, step, layer, j)
            yield from self.load_pages(shape, *next_layer(shape, step, layer, more), j)
            yield from self.finish_layer(shape, step, layer, j)
            ahead_layer, ahead_j = divmod(turn + lookahead, n)
            if ahead_layer < shape.num_layers:
                yield from self.launch(shape, step, ahead_layer, ahead_j, more)

    def launch(self, shape: PipelineShape, step: int, layer: int, j: int, more: bool) -> Issues:
        """PreAttn and attention of one micro-batch, and its share of the next layer's pages into staging."""
        if shape.attends(j) is Place.CPU:
            yield from self.attend_on_cpu(step, layer, j)
        elif shape.attends_beside_others(j):
            yield from self.attend_beside_others(shape, step, layer, j)
        else:
            if shape.kv_on_host(j):
                yield issue(Op.LOAD_KV, step, layer, j)
            yield from self.attend_on_gpu(step, layer, j)
            if shape.kv_on_host(j):
                yield issue(Op.STORE_KV, step, layer, j)
        yield from self.pin_pages(shape, *next_layer(shape, step, layer, more), j)

    def pages(self, shape: PipelineShape, j: int) -> Sequence[int]:
        """The pages that go with micro-batch j; all with the first if PreAttn, which runs ahead, needs them too."""
        if shape.streams_non_experts:
            return range(shape.num_pages if j == 0 else 0)
        return shape.page_group(j)

    def pin_pages(self, shape: PipelineShape, step: int, layer: int, j: int) -> Issues:
        """The pages of `layer` into pinned staging."""
        if step >= 0 and shape.streamed[layer] and not shape.weights_pinned:
            for page in self.pages(shape, j):
                yield issue(Op.PIN_WEIGHTS, step, layer, page=page)

    def load_pages(self, shape: PipelineShape, step: int, layer: int, j: int) -> Issues:
        """The same pages from staging to the device."""
        if step >= 0 and shape.streamed[layer]:
            for page in self.pages(shape, j):
                yield issue(Op.LOAD_WEIGHTS, step, layer, page=page)
