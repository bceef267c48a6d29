"""What a schedule's own order of issue says of the paths through a decode step, seen on small pipelines."""

from collections.abc import Sequence
from dataclasses import dataclass

from sim.schedule import WHOLE, Barrier, Issue, Op, PipelineShape, Place, Schedule

LAYERS = 3
MICRO_BATCHES = (6, 9)
"""What is the same with both does not depend on their number."""

LOADS = (Op.LOAD_WEIGHTS, Op.LOAD_WEIGHTS_PAGEABLE)


@dataclass(frozen=True, slots=True)
class DecodeOrder:
    """Where weights have to be staged, which lanes are in step, and how far one may run ahead of another."""

    meets: bool
    """Whether there are barriers."""
    lookahead: int | None
    """Micro-batches by which PreAttn runs ahead of PostAttn; None: more if there are more, or in another order."""
    stages: bool
    """Whether weights pass through staging."""
    beside_hidden: bool
    """Whether each group of pages, or with the first micro-batch the whole layer, follows its hidden states."""
    outside: int
    """Layers whose weights are at least in part issued before a step's first hidden states or behind its last."""

    @classmethod
    def of(cls, schedule: Schedule) -> "DecodeOrder":
        """The order of attention on the CPU, if the schedule can."""
        (_, few, _), (shape, issues, meets) = (_issued(schedule, n) for n in MICRO_BATCHES)
        lookahead = _lookahead(issues) if _lookahead(issues) == _lookahead(few) else None
        stages = any(one.op is Op.PIN_WEIGHTS for one in issues)
        return cls(meets, lookahead, stages, _link(issues) == _beside_hidden(shape), _outside(issues))


def _issued(schedule: Schedule, n: int) -> tuple[PipelineShape, list[Issue], bool]:
    """A small pipeline, what one decode step of it issues, and whether there are barriers between."""
    system = schedule.system
    pages, place = n + 1 if system.paged else 1, Place.CPU if Place.CPU in system.attention else Place.GPU
    streams_kv, offloads = not system.kv_on_device, system.offloads_hidden
    shape = PipelineShape(
        LAYERS, n, pages, place, (True,) * LAYERS, system.streams_non_experts, streams_kv, offloads_hidden=offloads
    )
    found = list(schedule.decode(shape, 1, True))
    issues = [one for one in found if not isinstance(one, Barrier)]
    return shape, issues, len(issues) < len(found)


def _lookahead(issues: Sequence[Issue]) -> int | None:
    turns = {op: [one[3:5] for one in issues if one.op is op] for op in (Op.PRE_ATTN, Op.POST_ATTN)}
    if turns[Op.PRE_ATTN] != turns[Op.POST_ATTN]:
        return None
    ahead = most = 0
    for one in issues:
        ahead += (one.op is Op.PRE_ATTN) - (one.op is Op.POST_ATTN)
        most = max(most, ahead)
    return most


def _link(issues: Sequence[Issue]) -> list[tuple[bool, int, int, int]]:
    """What goes to the device, in order: (whether weights, step, layer, micro-batch or page)."""
    return [
        (one.op in LOADS, one.step, one.layer, one.page if one.op in LOADS else one.micro_batch)
        for one in issues
        if one.op in (*LOADS, Op.LOAD_HIDDEN)
    ]


def _beside_hidden(shape: PipelineShape) -> list[tuple[bool, int, int, int]]:
    whole = shape.num_pages == 1
    found = []
    for layer in range(shape.num_layers):
        after = (1, layer + 1) if layer + 1 < shape.num_layers else (2, 0)
        for j in range(shape.num_micro_batches):
            pages = ([WHOLE] if j == 0 else []) if whole else shape.page_group(j)
            found += [(False, 1, layer, j), *((True, *after, page) for page in pages)]
    return found


def _outside(issues: Sequence[Issue]) -> int:
    link = _link(issues)
    hidden = [at for at, (weights, *_) in enumerate(link) if not weights]
    first, last = (hidden[0], hidden[-1]) if hidden else (len(link), len(link))
    return len({one[1:3] for at, one in enumerate(link) if one[0] and not first < at < last})
