"""Requests that decode only with those whose prompts were computed with theirs."""

from engine.generation.streaming.cohort import Cohort
from engine.generation.streaming.cohorts import Cohorts
from engine.model import InFlight
from sim.admission import Composition


class Together(Cohorts):
    """A micro-batch carries one cohort from its prompts to the end of its last request: right for every model."""

    def _micro_batches(self, composition: Composition, step: int) -> list[InFlight | None]:
        num_prompts = self._shape.num_prompts
        of_place = {cohort.micro_batch.index: cohort.micro_batch for cohort in self._live}
        decoding = [of_place[num_prompts + j] if mine else None for j, mine in enumerate(composition.decoding)]
        entering: list[Cohort | None] = []
        for chunks, place in zip(composition.prompts, composition.places, strict=True):
            cohort = self._begin(num_prompts + place, [chunk.request for chunk in chunks], step)
            if cohort is not None:
                cohort.micro_batch.most_requests = self._most_requests
            entering.append(cohort)
        self._take_in(entering)
        return [*(None if one is None else one.micro_batch for one in entering), *decoding]
