"""A round of measurements as a file, so that a long campaign can measure the machine again and again and fit to all."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from engine.calibration.measured import Measured
from engine.calibration.probes import LinkProbe, Probes
from traces.trace import Span

_KEPT = ("id", "op", "lane", "rank", "step", "layer", "micro_batch", "page", "start_ns", "end_ns")


@dataclass(frozen=True, slots=True)
class Round:
    """One round: the probes, and per run of the calibration the spans of its tasks."""

    probes: Probes
    spans: list[list[Span]]

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        spans = [[[getattr(span, name) for name in _KEPT] for span in run] for run in self.spans]
        path.write_text(json.dumps({"probes": asdict(self.probes), "spans": spans}) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote."""
        content = json.loads(path.read_text(encoding="utf-8"))
        return cls(_probes(content["probes"]), [[Span(*span) for span in run] for run in content["spans"]])


def _probes(table: dict[str, Any]) -> Probes:
    link = LinkProbe(**{name: Measured(**one) for name, one in table.pop("link").items()})
    return Probes(link=link, **{name: Measured(**one) for name, one in table.items()})


def median_probes(rounds: Sequence[Round]) -> Probes:
    """Every probe at the round of its median: one that was really measured, with its own quartiles."""
    tables = [{**asdict(one.probes), "link": asdict(one.probes.link)} for one in rounds]
    link = {name: _middle([table["link"][name] for table in tables]) for name in tables[0]["link"]}
    rest = {name: _middle([table[name] for table in tables]) for name in tables[0] if name != "link"}
    return _probes({"link": link, **rest})


def _middle(measured: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return sorted(measured, key=lambda one: one["median"])[(len(measured) - 1) // 2]
