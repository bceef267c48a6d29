"""A sweep: every combination of the axes' values, each planned and simulated for every schedule; one row each.

A row follows from its point alone, so that rows are the same whoever computes them, and come in the order of points.
Rows come from the simulator, or from HRM alone: the paper's own search and its estimate, with nothing simulated.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from itertools import islice, product
from typing import Any

from sim.admission import Prompts, StreamOptions
from sim.comparison import SIZES, Asked, Outcome, compare
from sim.hrm import SCHEDULE, search_policies
from sim.planning import MONEY, Prices, best_policy
from sim.problem import UNIFORM, Hardware, Model, Policy, Problem, Routing, Workload
from sim.schedule import Place, by_name
from sim.simulation import predict
from sim.sweep.axes import HARDWARE, POLICY, Axis, Value, points
from sim.sweep.streams import (
    SERVED_COLUMNS,
    START_COLUMNS,
    check_streams,
    files_of,
    options_at,
    places_of,
    served_cells,
)
from traces.cli import project_version
from traces.errors import InputError, error_prefix

Row = dict[str, Any]
"""A row of results by column, in the order of the columns."""

PROBLEM_COLUMNS = ("by", "model", "hardware", "workload", "gen_len", "padded", "schedule")
_FIELDS = [field.name for field in fields(Policy)]
POLICY_COLUMNS = (*_FIELDS[:2], "num_micro_batches", *_FIELDS[2:])
MEASURE_COLUMNS = (
    "throughput_tokens_per_s",
    "prefill_tokens_per_s",
    "decode_tokens_per_s",
    "time_to_first_token_s",
    "seconds_per_token",
    "prefill_s",
    "decode_s",
    "bottleneck",
    "energy_j_per_token",
    "gpu_idle",
    "lower_bound_s",
    "hrm_tokens_per_s",
)

SIMULATOR, HRM = "simulator", "hrm"
HRM_LANES = {"link": "H2D", "gpu": "GPU", "cpu": "CPU"}


@dataclass(frozen=True, slots=True)
class Base:
    """What the axes vary: names or paths, and the fields of the policy that are fixed."""

    model: str
    hardware: str
    workload: str
    prompt_len: int | None = None
    gen_len: int | None = None
    padded: bool = True
    schedules: tuple[str, ...] = ()
    policy: Mapping[str, Value] = field(default_factory=dict)
    exact: bool = False
    by: str = SIMULATOR
    routing: str = UNIFORM
    stream: StreamOptions | None = None
    """Requests that come, instead of one batch."""
    sampled: bool | None = None
    settings: tuple[str, ...] = ()
    """Numbers of every machine, as `--set` gives them."""
    prices: Prices = field(default_factory=Prices)


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """One row to be: what is asked, and what the row begins with."""

    start: Row
    problem: Problem
    schedule: str
    asked: Asked
    stream: StreamOptions | None = None
    prompts: Prompts | None = None
    gen_len: int | None = None
    """What requests of a file may generate, if that is given."""
    prices: Prices = field(default_factory=Prices)


class Sweep:
    """All points of a base and axes. Raises InputError at once for any value that cannot be used."""

    def __init__(self, base: Base, axes: Sequence[Axis]) -> None:
        self._base, self._axes = base, tuple(axes)
        self._models = {name: Model.load(name) for name in self._values("model", base.model)}
        self._machines = {name: Hardware.load(name, base.settings) for name in self._values("hardware", base.hardware)}
        self._workloads = {name: Workload.load(name) for name in self._values("workload", base.workload)}
        self._routings = {name: Routing.parse(name) for name in self._values("routing", base.routing)}
        self._schedules = tuple(by_name(str(name)).name for name in self._values("schedule", *base.schedules))
        self._check_numbers_of_machines()
        self._check_policy()
        self._check_labels()
        self._check_streams()
        for routing, model in product(self._routings.values(), self._models.values()):
            routing.check_fits(model)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The names of a row's cells."""
        labels = [axis.label for axis in self._axes]
        problem: tuple[str, ...] = PROBLEM_COLUMNS
        results: tuple[str, ...] = MEASURE_COLUMNS
        if self._base.stream is not None:
            problem, results = (*problem, *START_COLUMNS), SERVED_COLUMNS
        results = (*results, *(MONEY if self._base.prices.given else ()))
        first, last = ([name for name in names if name not in labels] for names in (problem, results))
        return ("sweep", *labels, *first, "feasible", "reason", *POLICY_COLUMNS, *last)

    @cached_property
    def digest(self) -> str:
        """Twelve digits of the SHA-256 of everything that the rows follow from; each row carries it."""
        base = asdict(self._base)
        del base["routing"], base["settings"]  # which are in what they make of routings and machines
        for name, is_given in (("stream", self._base.stream is not None), ("prices", self._base.prices.given)):
            if not is_given:  # rows from before there were any keep their digest
                del base[name]
        routings = {name: asdict(routing) for name, routing in self._routings.items() if routing != Routing()}
        everything = {
            "version": project_version(),
            "axes": [asdict(axis) for axis in self._axes],
            "base": base,
            "schedules": self._schedules,
            "models": {name: asdict(model) for name, model in self._models.items()},
            "hardware": {name: machine.to_dict() for name, machine in self._machines.items()},
            "workloads": {name: asdict(workload) for name, workload in self._workloads.items()},
            **({"routings": routings} if routings else {}),  # rows from before there were any keep their digest
            **({"files": files_of(self._base.stream, self._axes)} if self._base.stream is not None else {}),
        }
        return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:12]

    def __len__(self) -> int:
        return sum(1 for _ in self._combinations())

    def points(self, start: int = 0) -> Iterator[SweepPoint]:
        """The points from number `start` on."""
        return (self._point(*one) for one in islice(self._combinations(), start, None))

    def _combinations(self) -> Iterator[tuple[tuple[Value, ...], str, Prompts | None]]:
        for values, schedule in self._with_schedules():
            places: Sequence[Prompts | None] = (None,) if self._base.stream is None else places_of(schedule)
            yield from ((values, schedule, prompts) for prompts in places)

    def _with_schedules(self) -> Iterator[tuple[tuple[Value, ...], str]]:
        swept = [axis.names for axis in self._axes]
        for values in points(self._axes):
            if ("schedule",) in swept:
                yield values, by_name(str(values[swept.index(("schedule",))])).name
            else:
                yield from ((values, schedule) for schedule in self._schedules)

    def _values(self, name: str, *given: str) -> tuple[str, ...]:
        """What a setting is anywhere in the sweep."""
        swept = [axis.values for axis in self._axes if name in axis.names]
        return tuple(str(value) for value in swept[0]) if swept else given

    def _point(self, values: tuple[Value, ...], schedule: str, prompts: Prompts | None) -> SweepPoint:
        set_by = list(zip(self._axes, values, strict=True))
        settings: dict[str, Any] = {name: value for axis, value in set_by for name in axis.names}
        model = self._models[settings.get("model", self._base.model)]
        machine = self._machines[settings.get("hardware", self._base.hardware)]
        for axis, value in set_by:
            machine = _with_numbers(machine, axis, value)
        prompt_len = settings.get("prompt_len", self._base.prompt_len if "workload" not in settings else None)
        length = {"prompt_len": prompt_len, "gen_len": settings.get("gen_len", self._base.gen_len)}
        workload = self._workloads[settings.get("workload", self._base.workload)]
        padded = settings.get("padded", self._base.padded)
        routing = self._routings[settings.get("routing", self._base.routing)]
        problem = Problem.of(
            model, machine, workload, **length, padded=padded, sampled=self._base.sampled, routing=routing
        )
        stream = self._base.stream and options_at(self._base.stream, settings)
        if stream is not None and isinstance(stream.requests, str):
            problem, _ = stream.stream_of(problem, length["gen_len"])
        start = {
            "sweep": self.digest,
            "by": self._base.by,
            "model": model.name,
            "hardware": machine.name,
            "workload": problem.workload.name,
            "gen_len": problem.workload.gen_len,
            "padded": problem.workload.padded,
            "schedule": schedule,
            **({} if stream is None else {"requests": stream.requests, "prompts": prompts and prompts.value}),
            **{axis.label: value for axis, value in set_by},
        }
        fixed = {name.removeprefix(POLICY): value for name, value in settings.items() if name.startswith(POLICY)}
        ordered = {name: start[name] for name in self.columns if name in start}
        asked = Asked.of({**self._base.policy, **fixed}, exact=self._base.exact)
        more = (stream, prompts, length["gen_len"], self._base.prices)
        return SweepPoint(ordered, problem, schedule, asked, *more)

    def _check_numbers_of_machines(self) -> None:
        for axis, machine in product(self._axes, self._machines.values()):
            with error_prefix(f"--axis {axis.label}: "):
                for value in axis.values:
                    _with_numbers(machine, axis, value)

    def _check_policy(self) -> None:
        swept = {name.removeprefix(POLICY) for axis in self._axes for name in axis.names if name.startswith(POLICY)}
        given = swept | set(self._base.policy)
        if self._base.by == HRM and (given or self._schedules != (SCHEDULE,)):
            alone = f"searches the policy itself, for {SCHEDULE}"
            raise InputError(f"--by hrm: {alone}: leave out policy and other schedules")
        whole = "micro_batch_size" in given and given & {"batch_size", "num_micro_batches"}
        if not given <= SIZES and not whole:
            others = ", ".join(POLICY + name for name in sorted(given - SIZES))
            raise InputError(
                f"{others}: fix the sizes too, with --micro-batch-size and --num-micro-batches or as axes; "
                "what is left open is planned only where nothing but sizes is fixed"
            )

    def _check_labels(self) -> None:
        taken = {"sweep", *MONEY, "feasible", "reason", *PROBLEM_COLUMNS, *POLICY_COLUMNS, *MEASURE_COLUMNS}
        taken |= {*START_COLUMNS, *SERVED_COLUMNS} if self._base.stream is not None else set()
        for axis in self._axes:
            if axis.label in taken and axis.names != (axis.label,):
                raise InputError(f"--axis {axis.label}: is a column of the results already; choose another label")

    def _check_streams(self) -> None:
        base = self._base
        if base.stream is not None and base.by == HRM:
            raise InputError("--by hrm: knows one batch only: leave out --requests")
        has_prompts = base.prompt_len is not None or bool(self._values("prompt_len") or self._values("workload"))
        check_streams(base.stream, self._axes, self._schedules, base.gen_len, has_prompts=has_prompts)


def _with_numbers(machine: Hardware, axis: Axis, value: Value) -> Hardware:
    """The machine with what the axis sets of it."""
    for setting in axis.settings:
        if setting.name.startswith(HARDWARE) and isinstance(value, float):
            path = setting.name.removeprefix(HARDWARE)
            if setting.scale is None:
                machine = machine.scaled(path, value)
            else:
                machine = machine.with_value(path, value * setting.scale, "an axis of a sweep")
    return machine


def row_of(point: SweepPoint) -> Row:
    """Plan and simulate one point. What does not fit, or cannot be, is a row with the reason and no numbers."""
    found, results = _results(point), MEASURE_COLUMNS if point.stream is None else SERVED_COLUMNS
    policy = found["policy"] or {}
    return {
        **point.start,
        "feasible": found["feasible"],
        "reason": " ".join(found["reason"].split()),
        **{name: policy.get(name) for name in POLICY_COLUMNS},
        **{name: found[name] for name in results if name not in point.start},
        **point.prices.cells(found, _tokens_per_request(found, point.problem)),
    }


def _tokens_per_request(found: Row, problem: Problem) -> float:
    """Of requests that come what they generate, on average."""
    generated = found.get("generated_tokens")
    return float(generated / found["num_requests"] if generated else problem.workload.gen_len)


def _results(point: SweepPoint) -> Row:
    if point.stream is not None and point.prompts is not None:
        return served_cells(point.problem, point.stream, point.asked, point.schedule, point.prompts, point.gen_len)
    try:
        return _searched(point.problem) if point.start["by"] == HRM else _simulated(point)
    except InputError as error:
        return Outcome(point.schedule, None, None, str(error)).to_dict()


def _simulated(point: SweepPoint) -> Row:
    asked, size, count = point.asked, point.asked.micro_batch_size, point.asked.num_micro_batches
    if asked.policies or (size and count):
        (outcome,) = compare(point.problem, [point.schedule], asked, jobs=1)
        return outcome.to_dict()
    plan = best_policy(point.problem, by_name(point.schedule), micro_batch_size=size, num_micro_batches=count)
    return predict(plan.best.setup, exact=asked.exact).to_dict()


def _searched(problem: Problem) -> Row:
    """What HRM expects of its best policy, attention on the CPU or on the device with the whole KV cache."""
    choices, errors = [], []
    for place in Place:
        try:
            choices.append(search_policies(problem.model, problem.hardware, problem.workload, attention=place))
        except InputError as error:
            errors.append(error)
    if not choices:
        raise errors[0]
    best = max(choices, key=lambda choice: choice.tokens_per_s)
    return {
        **Outcome(SCHEDULE, None, None).to_dict(),
        "feasible": True,
        "policy": best.policy.to_dict(),
        "throughput_tokens_per_s": best.tokens_per_s,
        "decode_s": best.layer_s * problem.model.num_layers * (problem.workload.gen_len - 1),
        "bottleneck": HRM_LANES[best.bottleneck],
        "hrm_tokens_per_s": best.tokens_per_s,
    }
