"""Requests that join others while these decode, whatever their age, and leave them when they end."""

from collections.abc import Callable, Sequence

from engine.generation.streaming.cohort import Cohort
from engine.generation.streaming.cohorts import Cohorts
from engine.generation.streaming.wanted import Wanted
from engine.memory import Activations, KVPools, PagedRows
from engine.model import InFlight, Joint, JointRows
from engine.tasks import RunContext
from sim.admission import Composition, Decoding
from sim.schedule import PipelineShape
from sim.simulation import ServedStep


class Joined(Cohorts):
    """A micro-batch decodes for requests of any cohorts; their keys and values lie in blocks, which are given back."""

    def __init__(
        self,
        run: RunContext,
        shape: PipelineShape,
        requests: Sequence[Wanted],
        activations: Activations,
        tell: Callable[[Wanted], None],
        on_step: Callable[[ServedStep], None],
        blocks: KVPools,
    ) -> None:
        super().__init__(run, shape, requests, activations, tell, on_step)
        self._blocks = blocks
        self._rows: dict[int, tuple[Cohort, int]] = {}  # by the number of a request that is in
        self._joints: list[Joint] = []

    def take_memory(self, locked: bool) -> None:
        itemsize = self._run.model.dtype.itemsize
        known = {i: widths for i, widths in enumerate(self._run.anatomy.kv_widths) if widths}
        sizes = {i: (keys * itemsize, values * itemsize) for i, (keys, values) in known.items()}
        self._blocks.take_rooms(sizes, locked=locked)

    def in_flight(self) -> list[InFlight]:
        return [*super().in_flight(), *self._joints]

    def _leave(self) -> list[Wanted]:
        left = super()._leave()
        for request in left:
            if self._rows.pop(request.number, None) is not None:
                self._blocks.release(request.number)
        return left

    def _micro_batches(self, composition: Composition, step: int) -> list[InFlight | None]:
        joints = [self._joint(j, mine, step) if mine else None for j, mine in enumerate(composition.decoding)]
        self._joints = [one for one in joints if one is not None]
        entering = []
        for lane, chunks in enumerate(composition.prompts):
            cohort = self._begin(lane, [chunk.request for chunk in chunks], step)
            if cohort is not None:
                self._give_blocks(cohort)
            entering.append(cohort)
        self._take_in(entering)
        return [*(None if one is None else one.micro_batch for one in entering), *joints]

    def _give_blocks(self, cohort: Cohort) -> None:
        """Gives the prompts of a cohort their blocks; what follows them others compute."""
        numbers = [one.number for one in cohort.left]
        self._rows |= {number: (cohort, row) for row, number in enumerate(numbers)}
        cohort.micro_batch.joins = True
        cohort.micro_batch.paged = PagedRows(self._blocks, numbers, [len(one.ids) for one in cohort.left])

    def _joint(self, place: int, decoding: Sequence[Decoding], step: int) -> Joint:
        of_cohort: dict[int, tuple[Cohort, list[int], list[int]]] = {}
        for number, *_ in decoding:
            cohort, row = self._rows[number]
            _, rows, numbers = of_cohort.setdefault(id(cohort), (cohort, [], []))
            rows.append(row)
            numbers.append(number)
        parts = [JointRows(cohort.micro_batch, rows) for cohort, rows, _ in of_cohort.values()]
        for part in parts:
            part.micro_batch.num_awaited += len(part.rows)
        numbers = [number for _, _, mine in of_cohort.values() for number in mine]
        paged = PagedRows(self._blocks, numbers, [1] * len(numbers))
        index, run = self._shape.num_prompts + place, self._run
        return Joint.of(
            index, step, parts, run.anatomy.layers, paged, paged.num_tokens, self._most_requests, self._capacity
        )
