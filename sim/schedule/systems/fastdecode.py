"""FastDecode-like: CGOPipe's overlap without its pages (schedule S2 of MoE-Lightning's figure 6)."""

from collections.abc import Sequence
from dataclasses import replace

from sim.schedule.shape import PipelineShape, Place
from sim.schedule.systems.cgopipe import CGOPipe
from sim.schedule.task import WHOLE


class FastDecode(CGOPipe):
    """The next layer's weights move as one piece and block the hidden states behind it.

    Staging is doubled, so that one layer can be pinned while the one before is on the link.
    """

    name = "fastdecode"
    summary = "as cgopipe, but a layer's weights move as one piece that blocks the hidden states behind it"
    system = replace(
        CGOPipe.system, attention=(Place.CPU,), mixes_attention=False, mixes=False, paged=False, pinned_layers=2
    )

    def pages(self, shape: PipelineShape, j: int) -> Sequence[int]:
        return () if j else (WHOLE,)
