"""A campaign over batches: the runs of a grid, and for each number of requests the planner's choice."""

import itertools
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from engine.running import RunPlan, plan
from sim.schedule import registered
from traces.errors import InputError
from traces.files import appearing, read_object
from validation.campaign.grid import CampaignGrid, Case
from validation.campaign.measurements import Measurements

SIZES = ("batch_size", "micro_batch_size", "num_micro_batches")

PLANNED = "planner"
"""What the labels of runs begin with whose schedule and policy the planner chose."""


@dataclass(frozen=True, slots=True)
class Campaign(Measurements):
    """A grid on a device, in a folder."""

    grid: CampaignGrid

    @property
    def _asked(self) -> list[tuple[str, int]]:
        """What the planner is asked: models and numbers of requests."""
        return list(itertools.product(self.grid.models, (self.grid.requests, *self.grid.small_batches)))

    def _plan_file(self, model: str, requests: int) -> Path:
        end = "" if requests == self.grid.requests else f"-{requests}"
        return self.folder / f"planned-{model}{end}.json"

    def cases(self) -> list[Case]:
        """The grid's cases, and for each model and number of requests the planner's choice."""
        return [*self.grid.cases(), *itertools.starmap(self._planned, self._asked)]

    def all_cases(self) -> Sequence[Case]:
        """These."""
        return self.cases()

    @property
    def num_cases(self) -> int:
        """How many there will be."""
        return len(self.grid.cases()) + len(self._asked)

    def calibrated(self, name: str, model: PreTrainedModel) -> None:
        """The planner chooses after the first round."""
        for asked, requests in self._asked:
            if asked == name:
                self._plan(name, model, requests)

    def _plan(self, name: str, model: PreTrainedModel, requests: int) -> None:
        """Write down what the planner takes for so many requests, from the calibration alone."""
        file = self._plan_file(name, requests)
        if file.exists():
            return
        lengths, machine = [self.grid.prompt_tokens] * requests, self.machine(name)
        plans: dict[str, RunPlan] = {}
        for schedule in registered().values():
            with suppress(InputError):  # nothing fits
                plans[schedule.name] = plan(model, machine, schedule, lengths, self.grid.gen_len_of(requests))
        best = max(plans, key=lambda schedule: plans[schedule].expected_tokens_per_s)
        chosen = {"schedule": best, "policy": plans[best].policy.to_dict()}
        with appearing(file) as path:
            path.write_text(json.dumps(chosen, indent=1) + "\n", encoding="utf-8")

    def _planned(self, name: str, requests: int) -> Case:
        """The schedule and the policy that the planner chose."""
        chosen = read_object(self._plan_file(name, requests))
        policy = chosen["policy"]
        fields = {key: value for key, value in policy.items() if key not in SIZES and value is not None}
        sizes = (policy["batch_size"], policy["micro_batch_size"])
        label, gen_len = f"{PLANNED}-for-{requests}", self.grid.gen_len_of(requests)
        return Case(name, chosen["schedule"], *sizes, self.grid.prompt_tokens, gen_len, fields, label)
