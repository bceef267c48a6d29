"""Runs things only while the machine is as fast as it usually is.

On a machine that others use too, compute slows down by a third for seconds at a time. A reference product is timed
between runs; a run with a slow look before or after it is made again. What decides is the reference alone, never what
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

from engine.device import Device
from sim.schedule import LaneKind
from traces.files import appearing, read_object

T = TypeVar("T")

TOLERANCE = 0.08
"""The reference may take so much longer than usual."""

FIRST_LOOKS = 40
LOOKS = 3
"""Times that the reference is run for one look; the middle one counts: a slow moment is no slow time."""

FASTER_LOOKS = 3
"""So many looks one after the other that are faster than usual say that the machine was slow before."""

PAUSE_S = 0.1
FRESH_S = 2.0
"""A look that is older says nothing about a run that begins."""

PATIENCE_S = 20.0
"""How long a slow machine is waited for, before each try; what the reference itself takes comes on top."""

TRIES = 3

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
    """Runs made again or kept though unsteady; the reference's usual time, how often a shorter one took its place."""

    usual_s: float = 0.0
    made_again: int = 0
    kept_unsteady: int = 0
    found_faster: int = 0


def told(file: Path) -> list[str]:
    """What a report says of the watch that `file` kept: one sentence, or none if there was no watch."""
    if not file.exists():
        return []
    counts = Counts(**read_object(file))
    return [
        f"Between runs a reference product was timed (usually {1e3 * counts.usual_s:.2f} ms). Where it "
        f"took {TOLERANCE:.0%} longer the run was made again, whatever it had taken itself: {counts.made_again} times. "
        f"After {TRIES} tries it was kept: {counts.kept_unsteady} times. The usual time was corrected to a shorter one "
        f"{counts.found_faster} times."
    ]


@dataclass(slots=True)
class Steady:
    """Watches over the runs of a campaign. `reference` times a fixed piece of work, in seconds; `file` keeps count."""

    reference: Callable[[], float]
    file: Path
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    counts: Counts = field(default_factory=Counts)
    _last: tuple[float, float] | None = None
    """The last look, in seconds, and when that was."""
    _faster: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.file.exists():
            self.counts = Counts(**read_object(self.file))
        else:
            self.counts.usual_s = statistics.quantiles([self._look() for _ in range(FIRST_LOOKS)], n=4)[0]
            self._write()

    def __call__(self, make: Callable[[], T]) -> T:
        """What `make` returns, made on a steady machine if one can be had."""
        for _ in range(TRIES):
            before = self._wait()
            made = make()
            after = self._look()
            self._learn(after)
            if self._usual(before) and self._usual(after):  # by what is known now
                return made
            self.counts.made_again += 1
            self._write()
        self.counts.made_again -= 1
        self.counts.kept_unsteady += 1
        self._write()
        return made

    def _wait(self) -> float:
        """The last look, once it is as usual or patience has ended."""
        if self._last is not None and self.clock() - self._last[1] <= FRESH_S and self._usual(self._last[0]):
            return self._last[0]
        for _ in range(round(PATIENCE_S / (LOOKS * PAUSE_S))):
            look = self._look()
            self._learn(look)
            if self._usual(look):
                break
        return look

    def _look(self) -> float:
        times = []
        for _ in range(LOOKS):
            self.sleep(PAUSE_S)
            times.append(self.reference())
        look = statistics.median(times)
        self._last = look, self.clock()
        return look

    def _usual(self, look: float) -> bool:
        return look <= (1 + TOLERANCE) * self.counts.usual_s

    def _learn(self, look: float) -> None:
        """Noise makes work slower: a machine that stays faster than usual was slow when that was taken."""
        self._faster = [*self._faster, look] if look < (1 - TOLERANCE) * self.counts.usual_s else []
        if len(self._faster) == FASTER_LOOKS:
            self.counts.usual_s = statistics.median(self._faster)
            self._faster = []
            self.counts.found_faster += 1
            self._write()

    def _write(self) -> None:
        with appearing(self.file) as path:
            path.write_text(json.dumps(asdict(self.counts), indent=1) + "\n", encoding="utf-8")
