"""Ours: each expert where it is cheapest, at once, and CGOPipe's order for the rest."""

from sim.schedule.base import Issues, issue, next_layer
from sim.schedule.experts import SplitExperts
from sim.schedule.shape import ExpertPlace, PipelineShape, Place, System
from sim.schedule.systems.cgopipe import LOOKAHEAD
from sim.schedule.task import Op


class Hybrid(SplitExperts):
    """Groups of micro-batches take turns: while one's experts compute, on device and host, others attend.

    Where the host has experts, a group leaves a layer one turn after its own, so that the host has that long for them.
    PreAttn and attention run ahead, as far as groups have left the layer before. The next layer's pages travel between
    the hidden states.
    """

    name = "hybrid"
    summary = "experts resident, streamed, fetched and on the CPU at once, in groups of micro-batches that take turns"
    system = System(
        (Place.CPU, Place.GPU),
        mixes_attention=True,
        paged=True,
        pinned_layers=1,
        pins_kv=True,
        mixes=True,
        experts=ExpertPlace.DEVICE | ExpertPlace.STREAMED | ExpertPlace.FETCHED | ExpertPlace.HOST,
        others=ExpertPlace.STREAMED,
        runs_layers_on_host=True,
        prefill_experts=(Place.GPU, Place.CPU),
    )

    def decode(self, shape: PipelineShape, step: int, more: bool) -> Issues:
        yield from self.begin_over_link(shape, step)
        groups = shape.num_groups
        lag = int(groups > 1 and any(shape.has_experts(layer, ExpertPlace.HOST) for layer in range(shape.num_layers)))
        lookahead = groups - lag if shape.num_prompts else min(LOOKAHEAD, groups - lag)
        if lookahead < LOOKAHEAD and lag and shape.attention is Place.CPU:
            yield from self._layer_by_layer(shape, step, more)
            return
        turns = [(layer, group) for layer in shape.layers_on_device for group in range(groups)]
        for layer, group in turns[:lookahead]:
            yield from self._launch(shape, step, layer, group)
        for at, (layer, group) in enumerate(turns):
            yield from self._turn(shape, step, layer, group, more)
            if at >= lag:
                yield from self.leave_experts(shape, step, *turns[at - lag])
            for turn in turns[at + lookahead : at + lookahead + 1]:
                yield from self._launch(shape, step, *turn)
        for turn in turns[len(turns) - lag :]:
            yield from self.leave_experts(shape, step, *turn)
        yield from self.last_host_layers(shape, step)

    def _layer_by_layer(self, shape: PipelineShape, step: int, more: bool) -> Issues:
        """Of two groups the host attends for both, then computes the experts of both: one fills the other's waits."""
        groups, layers = range(shape.num_groups), shape.layers_on_device
        for group in groups:
            yield from self._launch(shape, step, layers[0], group)
        for layer, after in zip(layers, [*layers[1:], None], strict=True):
            for group in groups:
                yield from self._turn(shape, step, layer, group, more)
            for group in groups:
                yield from self.leave_experts(shape, step, layer, group)
                if after is not None:
                    yield from self._launch(shape, step, after, group)
        yield from self.last_host_layers(shape, step)

    def _launch(self, shape: PipelineShape, step: int, layer: int, group: int) -> Issues:
        yield from self.host_layers(shape, step, layer, shape.group(group))
        for j in shape.group(group):
            yield from self.attend(shape, step, layer, j)

    def _turn(self, shape: PipelineShape, step: int, layer: int, group: int, more: bool) -> Issues:
        """A group from its attention to its experts; beside it, its part of the next layer's pages."""
        after = next_layer(shape, step, layer, more)
        for j in shape.group(group):
            if shape.attends(j) is Place.CPU:
                yield issue(Op.LOAD_HIDDEN, step, layer, j)
            yield from self._load_pages(shape, *after, j)
        yield from self.experts(shape, step, layer, group)

    def _load_pages(self, shape: PipelineShape, step: int, layer: int, j: int) -> Issues:
        """The pages that go with a micro-batch, through staging; with all of them if PreAttn needs them too."""
        if step < 0 or not shape.streams(step, layer):
            return
        pages = shape.page_group(j)
        if shape.streams_non_experts:
            pages = range(shape.num_pages if j == 0 else 0)
        for page in pages:
            if not shape.weights_pinned:
                yield issue(Op.PIN_WEIGHTS, step, layer, page=page)
            yield issue(Op.LOAD_WEIGHTS, step, layer, page=page)
