"""Runs a proof piece by piece: what is done is not done again, what fails is written down, time is kept."""

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from traces.errors import InputError
from validation.gpu.piece import MET, Piece, Stage
from validation.gpu.record import NotReadyError, Outcome
from validation.gpu.stages import REPORT_WEIGHT
from validation.gpu.workbench import Workbench

TRACEBACK_LINES = 40

Tell = Callable[[str], None]


@dataclass(slots=True)
class TimeBudget:
    """The time that is left, from now on; None: as much as it takes."""

    minutes: float | None
    clock: Callable[[], float] = time.monotonic
    _start_s: float = field(init=False)

    def __post_init__(self) -> None:
        self._start_s = self.clock()

    @property
    def passed_s(self) -> float:
        return self.clock() - self._start_s

    @property
    def left_s(self) -> float:
        """Until the deadline; infinite without one."""
        return float("inf") if self.minutes is None else 60 * self.minutes - self.passed_s


@dataclass(slots=True)
class StagePace:
    """How long pieces took against what was guessed; the next one's guess counts as if it had come true once."""

    guessed_s: float = 0.0
    took_s: float = 0.0

    def expected_s(self, piece: Piece) -> float:
        return piece.seconds * (self.took_s + piece.seconds) / (self.guessed_s + piece.seconds)

    def learn(self, piece: Piece, took_s: float) -> None:
        """What was learnt before counts half as much from now on."""
        self.guessed_s = self.guessed_s / 2 + piece.seconds
        self.took_s = self.took_s / 2 + took_s


@dataclass(frozen=True, slots=True)
class Proof:
    """The stages that are asked for, by their numbers, on a workbench."""

    bench: Workbench
    stages: Sequence[tuple[int, Stage]]
    budget: TimeBudget
    tell: Tell

    def run(self) -> None:
        """All pieces that are not done yet, as far as the time goes."""
        for at, (number, stage) in enumerate(self.stages):
            later = [other for _, other in self.stages[at:]]
            self._run_stage(number, stage, stage_shares_s(later, self.budget)[0])

    def _run_stage(self, number: int, stage: Stage, share_s: float) -> None:
        until_s, pace, first = self.budget.passed_s + share_s, StagePace(), True
        for piece in self._missing(stage):
            expected_s = pace.expected_s(piece)
            end_s = self.budget.passed_s + expected_s
            fits = end_s <= until_s or (first and expected_s <= self.budget.left_s)
            if not fits:
                left = (
                    f"no time: about {expected_s:.1f} s needed, {max(0.0, until_s - self.budget.passed_s):.1f} s left"
                )
                if "error" not in self.bench.record.outcome(stage.name, piece.name):  # that is worth more
                    self.bench.record.note(stage.name, piece.name, {"left_out": left})
                continue
            first = False
            self.tell(f"{number} {stage.name}: {piece.name} …")
            outcome = _outcome(piece, self.budget.clock)
            pace.learn(piece, outcome["took_s"])
            self.bench.record.note(stage.name, piece.name, outcome)
            self.tell(f"{number} {stage.name}: {piece.name}: {_in_short(outcome)}")

    def _missing(self, stage: Stage) -> Iterator[Piece]:
        done = self.bench.record.results(stage.name)
        return (piece for piece in stage.pieces(self.bench) if piece.name not in done)


def stage_shares_s(stages: Sequence[Stage], budget: TimeBudget) -> list[float]:
    """What of the time that is left each stage gets, by its weight; some is kept for the report."""
    whole = sum(stage.weight for stage in stages) + REPORT_WEIGHT
    return [budget.left_s * stage.weight / whole for stage in stages]


def failures(stages: dict[str, dict[str, Outcome]]) -> list[str]:
    """What failed: pieces that raised, and those whose result must be so and is not."""
    found = []
    for stage, pieces in stages.items():
        for name, outcome in pieces.items():
            if "error" in outcome:
                found.append(f"{stage}: {name}: {outcome['error']}")
            elif not outcome.get("result", {}).get(MET, True):
                found.append(f"{stage}: {name}: is not so: {outcome['result']}")
    return found


def _outcome(piece: Piece, clock: Callable[[], float]) -> Outcome:
    start_s = clock()
    try:
        outcome: Outcome = {"result": piece.work()}
    except NotReadyError as error:
        outcome = {"left_out": str(error)}
    except Exception as error:  # whatever it is: the next piece may work
        lines = traceback.format_exc().replace(f"{Path.cwd()}/", "").strip().splitlines()  # a folder to show to others
        outcome = {"error": _one_line(error), "traceback": lines[-TRACEBACK_LINES:]}
    return {**outcome, "took_s": clock() - start_s}


def _one_line(error: Exception) -> str:
    said = next(iter(str(error).strip().splitlines()), "")
    return said if isinstance(error, InputError) else f"{type(error).__name__}: {said}"


def _in_short(outcome: Outcome) -> str:
    took = f"{outcome['took_s']:.1f} s"
    if "error" in outcome:
        return f"FAILED after {took}: {outcome['error']}"
    if "left_out" in outcome:
        return f"left out: {outcome['left_out']}"
    result = outcome["result"]
    rate = f", {result['tokens_per_s']:.1f} tokens/s" if isinstance(result.get("tokens_per_s"), float) else ""
    met = "" if result.get(MET, True) else ", NOT MET"
    return f"{result.get('said', 'done')} ({took}{rate}{met})"
