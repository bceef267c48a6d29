"""Schedules side by side on one problem, each with the policy it was given or its own best one."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Self

from sim.cost import Setup
from sim.planning import NothingFitsError, PolicyGrid, best_policy, remarks, usually_locked
from sim.problem import Policy, Problem, WeightBits
from sim.schedule import ExpertPlace, Schedule, by_name, registered
from sim.simulation import MEASURES, Band, Prediction, bands_of, predict
from traces.cli import in_processes, project_version
from traces.data_frame import Tabular
from traces.errors import InputError

SIZES = frozenset({"micro_batch_size", "num_micro_batches"})
"""Fields that leave a schedule the rest of its usual policy."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is given of the policy: a whole one, or sizes, or nothing. `exact` simulates every step."""

    policies: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Per schedule, the fields of its policy; the entry '' is for all others."""
    micro_batch_size: int | None = None
    num_micro_batches: int | None = None
    exact: bool = False
    weight_bits: WeightBits | None = None
    """Widths of stored weights, where no whole policy says them."""

    def fields(self, schedule: str) -> Mapping[str, Any] | None:
        """Of a schedule's whole policy, if one is given."""
        return self.policies.get(schedule, self.policies.get(""))

    def leaves_open(self, schedule: str) -> bool:
        """Whether nothing is given of a schedule's policy."""
        return self.fields(schedule) is None and self.micro_batch_size is None and self.num_micro_batches is None

    def only_sizes(self, schedule: str) -> bool:
        """Whether both sizes are given and where things are is not."""
        return self.fields(schedule) is None and None not in (self.micro_batch_size, self.num_micro_batches)

    @classmethod
    def of(cls, policy: Mapping[str, Any], *, exact: bool = False) -> Self:
        """What a policy's fields ask of every schedule."""
        return cls(**policy, exact=exact) if policy.keys() <= SIZES else cls({"": policy}, exact=exact)


@dataclass(frozen=True, slots=True)
class Outcome(Tabular):
    """One schedule's prediction, or why there is none."""

    schedule: str
    setup: Setup | None
    prediction: Prediction | None
    reason: str = ""
    note: str = ""
    """What of the policy was neither given nor usual."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; an infeasible schedule has every field too, with nothing in it."""
        if self.prediction is not None:
            return self.prediction.to_dict()
        memory = self.setup.memory.peak_bytes() if self.setup else {}
        policy = self.setup.policy.to_dict() if self.setup else None
        said = {"schedule": self.schedule, "feasible": False, "reason": self.reason, "policy": policy}
        return {**said, "memory_peak_bytes": memory, "lanes": {}, "simulated_steps": [], **dict.fromkeys(MEASURES)}


@dataclass(frozen=True, slots=True)
class Comparison(Tabular, Sequence[Outcome]):
    """The outcomes of schedules on one problem, in the order in which they were asked for."""

    problem: Problem
    asked: Asked
    outcomes: tuple[Outcome, ...]

    def __len__(self) -> int:
        return len(self.outcomes)

    def __getitem__(self, at: Any) -> Any:
        return self.outcomes[at]

    @property
    def best(self) -> Outcome:
        """The outcome of most tokens per second. Raises InputError, with every reason, if nothing fits."""
        fitting = [(one.prediction.throughput_tokens_per_s, one) for one in self.outcomes if one.prediction is not None]
        if not fitting:
            reasons = " | ".join(dict.fromkeys(f"{one.schedule}: {one.reason}" for one in self.outcomes))
            raise InputError(f"nothing fits {self.problem.hardware.name}: {reasons}")
        return max(fitting, key=lambda both: both[0])[1]

    def bands(self, jobs: int | None = None) -> dict[str, Band]:
        """By schedule, the fastest first, where its runs are likely to be; of those that fit."""
        fitting = [one.prediction for one in self.outcomes if one.prediction is not None]
        fastest_first = sorted(fitting, key=lambda one: -one.throughput_tokens_per_s)
        found = bands_of([one.setup for one in fastest_first], jobs=jobs)
        return {one.schedule: band for one, band in zip(fastest_first, found, strict=True)}

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, with all that the results follow from: equal hashes of that, equal results."""
        schedules = [one.schedule for one in self.outcomes]
        return {**with_hash(inputs_of(self.problem, schedules, self.asked)), "results": self.rows()}

    def rows(self) -> list[dict[str, Any]]:
        """One for each schedule."""
        return [one.to_dict() for one in self.outcomes]


def inputs_of(problem: Problem, schedules: Sequence[str], asked: Asked) -> dict[str, Any]:
    """All that the results of a comparison follow from, as JSON values."""
    return {
        "version": project_version(),
        "schedules": list(schedules),
        "asked": asdict(asked),
        "model": asdict(problem.model),
        "hardware": problem.hardware.to_dict(),
        "workload": asdict(problem.workload),
        "routing": asdict(problem.routing),
    }


def with_hash(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs and their hash: equal hashes, equal results."""
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    return {"inputs": inputs, "input_hash": digest}


def compare(
    problem: Problem,
    schedules: Sequence[str] | None = None,
    asked: Asked | None = None,
    jobs: int | None = None,
    **policy: Any,
) -> Comparison:
    """One outcome per schedule, in the order given (default: all); `jobs` processes share the work (one per core).

    `policy` holds fields for all schedules, such as `micro_batch_size=36, num_micro_batches=14`, where `asked` does
    not say more; without any, each schedule gets its own best policy.
    Raises InputError for an unknown schedule or an impossible policy; a policy that does not fit is an outcome.
    """
    schedules = [by_name(name).name for name in (registered() if schedules is None else schedules)]
    asked = Asked.of(policy) if asked is None else asked
    return Comparison(problem, asked, tuple(in_processes(partial(_outcome, problem, asked), schedules, jobs)))


def _outcome(problem: Problem, asked: Asked, name: str) -> Outcome:
    try:
        setup, note = set_up(problem, asked, name)
    except NothingFitsError as error:
        return Outcome(name, None, None, str(error))
    if setup.shortages:
        return Outcome(name, setup, None, "; ".join(map(str, setup.shortages)))
    notes = "; ".join(filter(None, (note, setup.policy.changes_outputs, *remarks(setup))))
    return Outcome(name, setup, predict(setup, exact=asked.exact), note=notes)


def set_up(problem: Problem, asked: Asked, name: str) -> tuple[Setup, str]:
    """A schedule with what is asked of its policy, or its own best one, and what to say of it.

    Raises NothingFitsError where no policy fits; one that was given may have shortages.
    """
    setup = _as_asked(problem, asked, name)
    if not asked.only_sizes(name):
        return setup, ""
    found, note = _with_experts_that_fit(setup) if setup.shortages else (setup, "")
    notes = [note] if note else []
    if setup.schedule.system.one_batch and asked.num_micro_batches != 1:
        notes.append("all requests as one micro-batch, as it runs them")
    return found, "; ".join(notes)


def _as_asked(problem: Problem, asked: Asked, name: str) -> Setup:
    schedule, given = by_name(name), asked.fields(name)
    if given is not None:
        usual = {"pin_weights": 1.0} if problem.hardware.link.locked_only else {}
        return Setup(problem, schedule, Policy.from_dict({**usual, **given}, schedule))
    size, count = asked.micro_batch_size, asked.num_micro_batches
    if size is not None and count is not None and not schedule.system.splits_experts:
        return usual_setup(problem, schedule, size, count, asked.weight_bits)
    grid = PolicyGrid(weight_bits=asked.weight_bits)
    return best_policy(problem, schedule, micro_batch_size=size, num_micro_batches=count, grid=grid).best.setup


def usual_setup(
    problem: Problem,
    schedule: Schedule,
    micro_batch_size: int,
    num_micro_batches: int,
    weight_bits: WeightBits | None = None,
) -> Setup:
    """The system's usual policy of these sizes: where it page-locks weights, as large a share of them as fits.

    A system that runs all requests as one micro-batch runs all of these so.
    """
    batch_size = micro_batch_size * num_micro_batches
    usual = Policy.usual(schedule, batch_size, batch_size if schedule.system.one_batch else micro_batch_size)
    policy = replace(usual, weight_bits=weight_bits)
    return usually_locked(Setup(problem, schedule, policy))


def _with_experts_that_fit(setup: Setup) -> tuple[Setup, str]:
    """A setup that does not fit with as many experts on the device as do, and what to say of it; else as it is."""
    total = setup.problem.model.num_experts
    for count in range(total, 0, -1):
        with suppress(InputError):  # a schedule that takes all of them or none
            tried = replace(setup, policy=replace(setup.policy, experts_on_device=count / total))
            fitting = usually_locked(tried)
            if not fitting.shortages:
                usual = f"{setup.policy.experts_on_device:.0%}"
                return (
                    fitting,
                    f"{count} of {total} experts on the device, as many as fit, as its usual {usual} does not",
                )
    return _all_streaming(setup) or (setup, "")


def _all_streaming(setup: Setup) -> tuple[Setup, str] | None:
    """The same with the rest of each layer streaming, too, if the schedule can have it so and then fits."""
    system = setup.schedule.system
    if system.streams_non_experts or not system.experts & ExpertPlace.STREAMED:
        return None
    policy = replace(setup.policy, experts_on_device=0.0, stream_non_experts=True)
    fitting = usually_locked(replace(setup, policy=policy))
    if fitting.shortages:
        return None
    return fitting, "all weights streaming, as what is no expert does not fit the device beside the rest"
