"""FastDecode-like: CGOPipe's overlap without its pages (schedule S2 of MoE-Lightning's figure 6)."""

from dataclasses import replace

from sim.schedule.base import Issues, issue
from sim.schedule.shape import PipelineShape, Place
from sim.schedule.systems.cgopipe import CGOPipe
from sim.schedule.task import WHOLE, Op


class FastDecode(CGOPipe):
    """The next layer's weights move as one piece and block the hidden states behind it.

    Staging is doubled, so that one layer can be pinned while the one before is on the link.
    """

    name = "fastdecode"
    summary = "as cgopipe, but a layer's weights move as one piece that blocks the hidden states behind it"
    system = replace(CGOPipe.system, attention=(Place.CPU,), paged=False, pinned_layers=2)

    def pin_pages(self, shape: PipelineShape, step: int, layer: int, j: int) -> Issues:
        if j == 0 and step >= 0 and shape.streamed[layer] and not shape.weights_pinned:
            yield issue(Op.PIN_WEIGHTS, step, layer, page=WHOLE)

    def load_pages(self, shape: PipelineShape, step: int, layer: int, j: int) -> Issues:
        if j == 0 and step >= 0 and shape.streamed[layer]:
            yield issue(Op.LOAD_WEIGHTS, step, layer, page=WHOLE)
