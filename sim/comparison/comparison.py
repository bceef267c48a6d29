"""Schedules side by side on one problem, each with the policy it was given or its own best one."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from sim.cost import Setup
from sim.planning import NothingFitsError, best_policy
from sim.problem import Policy, Problem
from sim.schedule import Schedule, by_name
from sim.simulation import MEASURES, Prediction, predict


@dataclass(frozen=True, slots=True)
class Asked:
    """What is given of the policy: a whole one, or sizes, or nothing. `exact` simulates every step."""

    policies: Mapping[str, Mapping[str, Any]]
    """Per schedule, the fields of its policy; the entry '' is for all others."""
    micro_batch_size: int | None = None
    num_micro_batches: int | None = None
    exact: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """One schedule's prediction, or why there is none."""

    schedule: str
    setup: Setup | None
    prediction: Prediction | None
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; an infeasible schedule has every field too, with nothing in it."""
        if self.prediction is not None:
            return self.prediction.to_dict()
        empty = dict.fromkeys(MEASURES)
        memory = self.setup.memory.peak_bytes() if self.setup else {}
        policy = self.setup.policy.to_dict() if self.setup else None
        kept: dict[str, Any] = {"policy": policy, "memory_peak_bytes": memory, "lanes": {}, "simulated_steps": []}
        return {"schedule": self.schedule, "feasible": False, "reason": self.reason, **kept, **empty}


def compare(problem: Problem, schedules: Sequence[str], asked: Asked, jobs: int | None = None) -> list[Outcome]:
    """One outcome per schedule, in the order given; `jobs` processes share the work (default: one per core).

    Raises InputError for an unknown schedule or an impossible policy; a policy that does not fit is an outcome.
    """
    for name in schedules:
        by_name(name)
    workers = min(jobs or os.cpu_count() or 1, len(schedules))
    work = partial(_outcome, problem, asked)
    if workers == 1:
        return [work(name) for name in schedules]
    with ProcessPoolExecutor(workers) as pool:
        return list(pool.map(work, schedules))


def _outcome(problem: Problem, asked: Asked, name: str) -> Outcome:
    try:
        setup = _set_up(problem, asked, name)
    except NothingFitsError as error:
        return Outcome(name, None, None, str(error))
    if setup.shortages:
        return Outcome(name, setup, None, "; ".join(map(str, setup.shortages)))
    return Outcome(name, setup, predict(setup, exact=asked.exact))


def _set_up(problem: Problem, asked: Asked, name: str) -> Setup:
    schedule = by_name(name)
    given = asked.policies.get(name, asked.policies.get(""))
    if given is not None:
        return Setup(problem, schedule, Policy.from_dict(given, schedule))
    size, count = asked.micro_batch_size, asked.num_micro_batches
    if size is not None and count is not None:
        return _usual(problem, schedule, size, count)
    return best_policy(problem, schedule, micro_batch_size=size, num_micro_batches=count).best.setup


def _usual(problem: Problem, schedule: Schedule, micro_batch_size: int, num_micro_batches: int) -> Setup:
    """The system's usual policy of these sizes: weights page-locked where it does that and they fit."""
    batch_size = micro_batch_size * num_micro_batches
    setups = [
        Setup(problem, schedule, Policy.usual(schedule, batch_size, micro_batch_size, pin_weights=pin))
        for pin in dict.fromkeys((schedule.pins_weights, False))
    ]
    return next((setup for setup in setups if not setup.shortages), setups[-1])


def inputs(problem: Problem, schedules: Sequence[str], asked: Asked) -> dict[str, Any]:
    """Everything that the results follow from, as JSON values."""
    return {
        "version": project_version(),
        "schedules": list(schedules),
        "asked": {**asdict(asked), "policies": {name: dict(table) for name, table in asked.policies.items()}},
        "model": asdict(problem.model),
        "hardware": problem.hardware.to_dict(),
        "workload": asdict(problem.workload),
    }


def input_hash(everything: Mapping[str, Any]) -> str:
    """SHA-256 of the inputs: equal hashes, equal results."""
    canonical = json.dumps(everything, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def project_version() -> str:
    """The installed version of the project."""
    try:
        return version("cgopipe")
    except PackageNotFoundError:
        return "not installed"
