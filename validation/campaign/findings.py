"""What a campaign's traces say, by layers of validation.

Repeats share a prediction. Durations of tasks are compared as medians over repeats, throughputs with their spread.
"""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from sim.hrm import hrm_tokens_per_s
from sim.problem import Hardware
from traces.files import read_trace
from traces.trace import Key
from validation.campaign.execute import PLANNED
from validation.campaign.grid import CampaignGrid, Case
from validation.campaign.joules import CaseEnergy, case_energy
from validation.mechanics import Check, mechanics
from validation.metrics import Ranking, Spread, kendall_tau, regret, relative_error, spread_of
from validation.replay import OpAccuracy, Replay, What, rebuild_setup, recorded, replay_trace, what_of


@dataclass(frozen=True, slots=True)
class CaseResult:
    """One case. Tokens per second; errors are shares of what was measured.

    `order_errors` has one entry a repeat, and so has `handed_over_errors`: with the hand-over between lanes that the
    calibration measured. `blame` is the op, and its lane, whose time is furthest off in seconds of the whole run.
    `energy` is None where nothing was counted.
    """

    case: Case
    measured: Spread
    predicted_tokens_per_s: float
    error: float
    prefill_error: float
    decode_error: float
    order_errors: tuple[float, ...]
    handed_over_errors: tuple[float, ...]
    busy_points: float
    path_agreement: float
    hrm_tokens_per_s: float | None
    blame: str
    energy: CaseEnergy | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """How a choice by prediction fares: the ranking of some cases of one model, and what following it costs."""

    model: str
    what: str
    ranking: Ranking
    cases: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Regret:
    """The planner's choice run for real beside the best that was measured; `regret` is the share lost."""

    model: str
    chosen: str
    chosen_tokens_per_s: float
    best: str
    best_tokens_per_s: float
    regret: float


@dataclass(frozen=True, slots=True)
class Findings:
    """All layers. `missing` lists runs that have not been made."""

    origin: str
    repeats: int
    mechanics: tuple[Check, ...]
    runs: tuple[CaseResult, ...]
    ops: tuple[OpAccuracy, ...]
    decisions: tuple[Decision, ...]
    regrets: tuple[Regret, ...]
    missing: tuple[str, ...]

    def order_errors(self) -> list[float]:
        """Of the makespans of all traces whose own durations were replayed, without sign."""
        return [abs(error) for run in self.runs for error in run.order_errors]

    @property
    def order_worst(self) -> float:
        return max(self.order_errors())

    @property
    def handed_over_worst(self) -> float:
        """The worst with the machine's hand-over between lanes."""
        return max(abs(error) for run in self.runs for error in run.handed_over_errors)

    @property
    def duration_errors(self) -> dict[str, float]:
        """WAPE of each op over lanes and phases, weighted by the time that they took."""
        return {op: _wape([one for one in self.ops if one.op == op]) for op in {one.op for one in self.ops}}

    @property
    def duration_wape(self) -> float:
        """All tasks together."""
        return _wape(self.ops)

    def share_of_time(self, op: str) -> float:
        """The part of all tasks' time that an op took."""
        return _total_s([one for one in self.ops if one.op == op]) / _total_s(self.ops)

    @property
    def run_median(self) -> float:
        return statistics.median(abs(run.error) for run in self.runs)

    @property
    def run_worst(self) -> float:
        return max(abs(run.error) for run in self.runs)

    @property
    def energy_errors(self) -> list[float]:
        """Of joules per token, without sign, of the runs whose joules were counted."""
        return [abs(run.energy.error) for run in self.runs if run.energy is not None]

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON values; `layer` 1 to 3 are the checks of order, of durations and of whole runs."""
        summary = {
            "layer1_worst": self.order_worst,
            "layer1_worst_with_hand_over": self.handed_over_worst,
            "layer2_wape": self.duration_wape,
            "layer2_wape_by_op": self.duration_errors,
            "layer3_median": self.run_median,
            "layer3_worst": self.run_worst,
            "energy_median": statistics.median(self.energy_errors) if self.energy_errors else None,
            "energy_worst": max(self.energy_errors, default=None),
        }
        whole = asdict(self)
        for told, run in zip(whole["runs"], self.runs, strict=True):
            told["case"]["name"] = run.case.name
            told["layer1_errors"] = told.pop("order_errors")
        return {"summary": summary, **whole}


class Recordings(Protocol):
    """Runs that have been made: the cases of a grid, a machine for each model, and traces."""

    @property
    def grid(self) -> CampaignGrid: ...

    @property
    def repeats(self) -> int: ...

    def cases(self) -> Sequence[Case]: ...

    def machine(self, model: str) -> Hardware: ...

    def traces(self, case: Case) -> Sequence[Path]:
        """Of the repeats that have been run."""
        ...


def analyse(campaign: Recordings) -> Findings:
    """Replay every trace. Cases without a trace are listed as missing."""
    results, pooled, missing, origin = [], list[OpAccuracy](), [], ""
    for case in campaign.cases():
        machine = campaign.machine(case.model)
        replays = [replay_trace(read_trace(file), machine) for file in campaign.traces(case)]
        if len(replays) < campaign.repeats:
            missing.append(f"{case.name}: {campaign.repeats - len(replays)} of {campaign.repeats} repeats")
        if replays:
            origin = replays[0].measured.origin
            ops = _medians(replays)
            pooled += ops
            results.append(_result(case, replays, ops))
    decisions, regrets = tuple(_decisions(campaign, results)), tuple(regrets_of(campaign, results))
    whole = (tuple(mechanics()), tuple(results), _pool(pooled), decisions, regrets, tuple(missing))
    return Findings(origin, campaign.repeats, *whole)


def _medians(replays: Sequence[Replay]) -> list[OpAccuracy]:
    """Errors per op of one case, each task at its median over repeats."""
    predicted = replays[0].predicted
    assert predicted is not None
    durations: defaultdict[Key, list[int]] = defaultdict(list)
    for one in replays:
        for span in one.measured.spans:
            durations[span.key].append(span.duration_ns)
    groups: defaultdict[What, list[tuple[float, float]]] = defaultdict(list)
    for span in predicted.spans:
        took_ns = statistics.median(durations.get(span.key, [0]))
        if took_ns:
            groups[what_of(span, replays[0].run.shape)].append((took_ns, span.duration_ns))
    return [OpAccuracy.of(what, *map(list, zip(*pairs, strict=True))) for what, pairs in groups.items()]


def _pool(lines: Iterable[OpAccuracy]) -> tuple[OpAccuracy, ...]:
    """Lines of several cases as one per op, lane and phase: WAPE by measured time, MAPE by tasks."""
    groups: defaultdict[What, list[OpAccuracy]] = defaultdict(list)
    for one in lines:
        groups[one.op, one.lane, one.phase].append(one)
    pooled = []
    for what, own in groups.items():
        count, measured_s = sum(one.count for one in own), _total_s(own)
        predicted_s = sum(one.predicted_s for one in own)
        by_task = sum(one.mape * one.count for one in own) / count
        bias = predicted_s / measured_s - 1
        pooled.append(OpAccuracy(*what, count, measured_s, predicted_s, by_task, _wape(own), bias))
    return tuple(sorted(pooled, key=lambda one: -one.measured_s))


def _wape(lines: Sequence[OpAccuracy]) -> float:
    """WAPE over several lines: each by the time that it took."""
    return sum(one.wape * one.measured_s for one in lines) / _total_s(lines)


def _total_s(lines: Sequence[OpAccuracy]) -> float:
    return sum(one.measured_s for one in lines)


def _result(case: Case, replays: Sequence[Replay], ops: Sequence[OpAccuracy]) -> CaseResult:
    layers = [one.run_check for one in replays if one.run_check is not None]
    predicted = layers[0]
    measured = spread_of([layer.run.measured_tokens_per_s for layer in layers])
    prefill_s = statistics.median(layer.prefill.measured_s for layer in layers if layer.prefill)
    decode_s = statistics.median(layer.decode.measured_s for layer in layers if layer.decode)
    first = replays[0]
    assert predicted.prefill is not None
    assert predicted.decode is not None
    assert first.hardware is not None
    worst = max(ops, key=lambda one: abs(one.predicted_s - one.measured_s))
    return CaseResult(
        case,
        measured,
        predicted.run.predicted_tokens_per_s,
        relative_error(predicted.run.predicted_tokens_per_s, measured.median),
        relative_error(predicted.prefill.predicted_s, prefill_s),
        relative_error(predicted.decode.predicted_s, decode_s),
        tuple(one.order_check.error for one in replays),
        tuple(error for one in replays if (error := one.order_check.error_with_hand_over) is not None),
        statistics.median(max(abs(share.points) for share in layer.lanes) for layer in layers),
        statistics.median(layer.path_agreement for layer in layers),
        hrm_tokens_per_s(rebuild_setup(first.measured, recorded(first.measured), first.hardware)),
        f"{worst.op} on {worst.lane} in {worst.phase}: {worst.predicted_s - worst.measured_s:+.2f} s of "
        f"{worst.measured_s:.2f} s",
        case_energy(replays),
    )


def _decisions(campaign: Recordings, results: Sequence[CaseResult]) -> Iterable[Decision]:
    for model in campaign.grid.models:
        usual = campaign.grid.usual_cases(model)
        own = [one for one in results if one.case.model == model and not one.case.label]
        kinds = {
            "schedules, same requests": [one for one in own if one.case in usual],
            "policies of cgopipe": [one for one in own if one.case.schedule == "cgopipe"],
            **{
                f"placements, {requests} requests": [
                    one for one in own if one.case in campaign.grid.cases_of(model, requests)
                ]
                for requests in campaign.grid.small_batches
            },
            "all runs": own,
        }
        for what, chosen in kinds.items():
            if len(chosen) > 1:
                said, spreads = [one.predicted_tokens_per_s for one in chosen], [one.measured for one in chosen]
                tau = kendall_tau(said, [one.median for one in spreads], [one.half_width for one in spreads])
                yield Decision(model, what, tau, tuple(one.case.name for one in chosen))


def regrets_of(campaign: Recordings, results: Sequence[CaseResult]) -> Iterable[Regret]:
    """Over what was measured of the same length, with as many requests as the planner was asked for, or fewer."""
    for planned in (one for one in results if one.case.label):
        model, requests = planned.case.model, int(planned.case.label.removeprefix(f"{PLANNED}-for-"))
        alike = (one for one in results if (one.case.model, one.case.gen_len) == (model, planned.case.gen_len))
        own = [one for one in alike if one.case.batch_size <= requests]
        if own:
            best = max(own, key=lambda one: one.measured.median)
            lost = regret([one is planned for one in own], [one.measured.median for one in own])
            yield Regret(model, planned.case.name, planned.measured.median, best.case.name, best.measured.median, lost)
