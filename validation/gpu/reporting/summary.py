"""What a proof says in all: which pieces of work came to an end, and the layers of validation over its runs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sim.problem import Hardware
from traces.files import read_trace
from validation.campaign import CampaignGrid, Case, Findings, analyse
from validation.gpu.proof import failures
from validation.gpu.record import ProofRecord
from validation.gpu.scale import Scale
from validation.gpu.stages import PREDICTIONS, REPORT, STAGES
from validation.metrics import regret
from validation.replay import replay_trace

SAME = 1e-3
"""Two predictions of one run are the same up to this share: one simulates each step, the other samples long runs."""

SHORTER = {"_pin_weights-True": "", "_experts_on_": " ", "-": " "}
"""What all runs have in common is left out of their names; parts of them are said as words."""


@dataclass(frozen=True, slots=True)
class StageCount:
    """How a stage stands."""

    number: int
    name: str
    title: str
    done: int
    failed: int
    left_out: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ProofSummary:
    """A record and what follows from it. `findings` is None where no run was made.

    `regrets` has for each model, and number of requests, the share of the best measured throughput that is lost by
    trusting the prediction.
    `whole_order_error` is layer 1 of the whole model's run.
    `unchanged` says that the predictions which were written before the runs are those that the traces are held against.
    """

    record: ProofRecord
    counts: tuple[StageCount, ...]
    failures: tuple[str, ...]
    left_out: tuple[str, ...]
    findings: Findings | None
    regrets: Mapping[str, float]
    unchanged: bool | None
    whole_order_error: float | None

    @property
    def predicted(self) -> dict[str, Mapping[str, Any]]:
        """What was written down of each case before it was run."""
        found = self.record.results("runs").items()
        return {case: one for name, cases in found if name.startswith(PREDICTIONS) for case, one in cases.items()}

    @property
    def runs(self) -> dict[str, Mapping[str, Any]]:
        """Of each case, of its repeats the one whose throughput is in the middle."""
        repeats: dict[str, list[Mapping[str, Any]]] = {}
        for name, one in self.record.results("runs").items():
            if "lanes" in one:
                repeats.setdefault(name.rpartition(".")[0], []).append(one)
        return {case: sorted(own, key=_rate)[(len(own) - 1) // 2] for case, own in repeats.items()}

    def to_dict(self) -> dict[str, Any]:
        """The whole proof as JSON values."""
        return {
            "settings": dict(self.record.settings),
            "counts": [asdict(one) for one in self.counts],
            "failures": list(self.failures),
            "left_out": list(self.left_out),
            "predictions_unchanged": self.unchanged,
            "regrets": dict(self.regrets),
            "whole_layer1_error": self.whole_order_error,
            "findings": self.findings and self.findings.to_dict(),
            "results": {stage.name: self.record.results(stage.name) for stage in STAGES},
        }


@dataclass(frozen=True, slots=True)
class ProofRuns:
    """The runs of stage 4 as a campaign's findings want them, their traces unpacked in a folder."""

    record: ProofRecord
    scale: Scale
    folder: Path

    @property
    def grid(self) -> CampaignGrid:
        """Of the models that were calibrated and run."""
        ready = [name for name in self.scale.models if self.record.machine_file(name).exists()]
        whole = self.scale.grid(dict.fromkeys(ready))
        run = {case.model for case in whole.cases() if self.traces(case)}
        return self.scale.grid({name: None for name in ready if name in run})

    @property
    def repeats(self) -> int:
        return self.scale.repeats

    def cases(self) -> Sequence[Case]:
        return self.grid.cases()

    def machine(self, model: str) -> Hardware:
        return Hardware.load(self.record.machine_file(model))

    def traces(self, case: Case) -> list[Path]:
        files = (self.folder / f"{case.name}.{repeat}.json.gz" for repeat in range(self.repeats))
        return [file for file in files if file.exists()]


def summarised(record: ProofRecord, scale: Scale) -> ProofSummary:
    """Replays every trace that the record holds; needs no device."""
    findings = None
    with record.unpacked("") as files:
        if files:
            runs = ProofRuns(record, scale, files[0].parent)
            findings = analyse(runs) if runs.cases() else None
        whole = [file for file in files if file.name.startswith("whole-")]
        whole_error = replay_trace(read_trace(whole[0])).order_check.error if whole else None
    left = [
        f"{stage}: {name}: {outcome['left_out']}"
        for stage, pieces in record.stages.items()
        for name, outcome in pieces.items()
        if "left_out" in outcome
    ]
    counts = tuple(_count(record, number) for number in range(REPORT))
    told = (tuple(failures(record.stages)), tuple(left), findings)
    return ProofSummary(record, counts, *told, _regrets(findings), _unchanged(record, findings), whole_error)


def _count(record: ProofRecord, number: int) -> StageCount:
    stage = STAGES[number]
    outcomes = record.stages.get(stage.name, {})
    failed = len(failures({stage.name: outcomes}))
    left_out = sum("left_out" in one for one in outcomes.values())
    seconds = sum(one.get("took_s", 0.0) for one in outcomes.values())
    return StageCount(number, stage.name, stage.title, len(outcomes) - failed - left_out, failed, left_out, seconds)


def _regrets(findings: Findings | None) -> dict[str, float]:
    """Over the schedules that were run of a model with the same requests."""
    runs = findings.runs if findings else ()
    found = {}
    for model, requests in dict.fromkeys((run.case.model, run.case.batch_size) for run in runs):
        own = [run for run in runs if (run.case.model, run.case.batch_size) == (model, requests)]
        found[f"{model}, {requests} requests"] = regret(
            [run.predicted_tokens_per_s for run in own], [run.measured.median for run in own]
        )
    return found


def _rate(run: Mapping[str, Any]) -> float:
    return float(run["tokens_per_s"])


def _unchanged(record: ProofRecord, findings: Findings | None) -> bool | None:
    """Whether each run's prediction is the one that was written before it; None if there are no runs."""
    if not findings or not findings.runs:
        return None
    said = {
        case: one["tokens_per_s"]
        for name, cases in record.results("runs").items()
        if name.startswith(PREDICTIONS)
        for case, one in cases.items()
    }
    apart = [abs(run.predicted_tokens_per_s / said[run.case.name] - 1) for run in findings.runs]
    return bool(max(apart) < SAME)


def shown_name(case: str) -> str:
    """A run's name in a few words, without what all runs have in common."""
    model, schedule, *rest = case.split("_", 2)
    what = "_" + "_".join(rest)
    for part, said in SHORTER.items():
        what = what.replace(part, said)
    return f"{model} {schedule} {what.removeprefix('_')}"
