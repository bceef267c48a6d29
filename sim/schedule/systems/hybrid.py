"""Ours: each expert where it is cheapest, at once, and CGOPipe's order for the rest."""

from sim.schedule.base import Issues, issue, next_layer
from sim.schedule.experts import SplitExperts
from sim.schedule.shape import ExpertPlace, PipelineShape, Place, System
from sim.schedule.task import Op


class Hybrid(SplitExperts):
    """Groups of micro-batches take turns: while one's experts compute, on device and host, others attend.

    A group goes on to the next layer one turn after its own, so that the host has that long for its experts, and with
    attention on the CPU each micro-batch attends beside the turns of the others. The next layer's pages travel between
    the hidden states.
    """

    name = "hybrid"
    summary = "experts resident, streamed, fetched and on the CPU at once, in groups of micro-batches that take turns"
    system = System(
        (Place.CPU, Place.GPU),
        paged=True,
        pinned_layers=1,
        pins_kv=True,
        experts=ExpertPlace.DEVICE | ExpertPlace.STREAMED | ExpertPlace.FETCHED | ExpertPlace.HOST,
        others=ExpertPlace.STREAMED,
        prefill_experts=(Place.GPU, Place.CPU),
    )

    def decode(self, shape: PipelineShape, step: int, more: bool) -> Issues:
        groups = shape.num_groups
        lag = int(groups > 1 and any(places & ExpertPlace.HOST for places in shape.experts))
        turns = [(layer, group) for layer in range(shape.num_layers) for group in range(groups)]
        for group in range(groups) if step == 1 else ():
            yield from self._launch(shape, step, 0, group)
        for at, (layer, group) in enumerate(turns):
            yield from self._turn(shape, step, layer, group, more)
            if at >= lag:
                yield from self._leave(shape, step, *turns[at - lag], more)
        for layer, group in turns[len(turns) - lag :]:
            yield from self._leave(shape, step, layer, group, more)

    def _launch(self, shape: PipelineShape, step: int, layer: int, group: int) -> Issues:
        for j in shape.group(group):
            yield from self.attend(shape, step, layer, j)

    def _turn(self, shape: PipelineShape, step: int, layer: int, group: int, more: bool) -> Issues:
        """A group from its attention to its experts; beside it, its part of the next layer's pages."""
        after = next_layer(shape, step, layer, more)
        for j in shape.group(group):
            if shape.attention is Place.CPU:
                yield issue(Op.LOAD_HIDDEN, step, layer, j)
            yield from self._load_pages(shape, *after, j)
        yield from self.experts(shape, step, layer, group)

    def _leave(self, shape: PipelineShape, step: int, layer: int, group: int, more: bool) -> Issues:
        """From a group's experts into the next layer, or through the head into the next step."""
        yield from self.leave_experts(shape, step, layer, group)
        after = next_layer(shape, step, layer, more)
        if after[0] >= 0:
            yield from self._launch(shape, *after, group)

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
