"""Runs things only while the machine is as fast as it usually is.

On a machine that others use too, compute slows down by a third for seconds at a time. A reference product is timed
before and after each run; a run that lies in such a time is made again. What decides is the reference alone, never what
the run itself took, and the counts are told in the report.
"""

import itertools
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from engine.device.base import Device
from sim.schedule.task import LaneKind

T = TypeVar("T")

TOLERANCE = 0.08
"""The reference may be off its usual time by so much."""

FIRST_LOOKS = 60
"""Looks from which the usual time is taken, a pause between each."""

PAUSE_S = 0.25
PATIENCE_S = 60.0
"""How long a slow machine is waited for, before each try."""

TRIES = 4


REFERENCE_SIZE = 1024
REFERENCE_WEIGHTS = 8
"""Weights of the reference together: more than caches hold, as weights are in a run."""

REFERENCE_ROWS = 16
REFERENCE_TIMES = 9


class Reference:
    """Seconds of a fixed piece of work on a device's compute lane: products of a few rows with weights in memory."""

    def __init__(self, make_device: Callable[[], Device]) -> None:
        self._make_device = make_device
        with make_device() as device:
            shapes = [(REFERENCE_SIZE, REFERENCE_SIZE)] * REFERENCE_WEIGHTS
            self._weights = [torch.ones(shape, device=device.torch_device) for shape in shapes]
            self._rows = torch.ones((REFERENCE_ROWS, REFERENCE_SIZE), device=device.torch_device)

    def __call__(self) -> float:
        with self._make_device() as device, device.open_lane(LaneKind.GPU) as lane:
            marks = [lane.mark()]
            for _ in range(REFERENCE_TIMES):
                for weights in self._weights:
                    torch.mm(self._rows, weights)
                marks.append(lane.mark())
        ends = [mark.time_ns for mark in marks]
        return statistics.median(end - start for start, end in itertools.pairwise(ends)) / 1e9


@dataclass(slots=True)
class Counts:
    """`usual_s`: the reference's usual time. Runs made once more, and runs kept although the machine was not steady."""

    usual_s: float = 0.0
    made_again: int = 0
    kept_unsteady: int = 0


def told(file: Path) -> list[str]:
    """What a report says of the watch that `file` kept: one sentence, or none if there was no watch."""
    if not file.exists():
        return []
    counts = Counts(**json.loads(file.read_text(encoding="utf-8")))
    return [
        f"Before and after each run a reference product was timed (usually {1e3 * counts.usual_s:.2f} ms). Where it "
        f"was off by more than {TOLERANCE:.0%} the run was made again, whatever it had taken: {counts.made_again} times. "
        f"After {TRIES} tries it was kept: {counts.kept_unsteady} times."
    ]


@dataclass(slots=True)
class Steady:
    """Watches over the runs of a campaign. `reference` times a fixed piece of work, in seconds; `file` keeps count."""

    reference: Callable[[], float]
    file: Path
    sleep: Callable[[float], None] = time.sleep
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        if self.file.exists():
            self.counts = Counts(**json.loads(self.file.read_text(encoding="utf-8")))
        else:
            self.counts.usual_s = self._usual_s()
            self._write()

    def __call__(self, make: Callable[[], T]) -> T:
        """What `make` returns, made on a steady machine if one can be had."""
        for _ in range(TRIES):
            calm = self._wait()
            made = make()
            if calm and self._is_usual():
                return made
            self._count(made_again=1)
        self._count(made_again=-1, kept_unsteady=1)
        return made

    def _usual_s(self) -> float:
        """The lower quartile of many looks: noise only ever makes work slower."""
        looks = []
        for _ in range(FIRST_LOOKS):
            looks.append(self.reference())
            self.sleep(PAUSE_S)
        return statistics.quantiles(looks, n=4)[0]

    def _wait(self) -> bool:
        waited_s = 0.0
        while not self._is_usual():
            if waited_s >= PATIENCE_S:
                return False
            self.sleep(PAUSE_S)
            waited_s += PAUSE_S
        return True

    def _is_usual(self) -> bool:
        return abs(self.reference() / self.counts.usual_s - 1) <= TOLERANCE

    def _count(self, made_again: int = 0, kept_unsteady: int = 0) -> None:
        self.counts.made_again += made_again
        self.counts.kept_unsteady += kept_unsteady
        self._write()

    def _write(self) -> None:
        self.file.write_text(json.dumps(asdict(self.counts), indent=1) + "\n", encoding="utf-8")
