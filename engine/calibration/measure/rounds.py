"""A round of measurements as a file, so that a long campaign can measure the machine again and again and fit to all."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from engine.calibration.measure.measured import Measured
from engine.calibration.measure.probes import LinkProbe, Probes
from traces.trace import Span

_KEPT = ("id", "op", "lane", "rank", "step", "layer", "micro_batch", "page", "start_ns", "end_ns")


@dataclass(frozen=True, slots=True)
class Round:
    """One round: the probes, per run of the calibration the spans of its tasks, and what a second place costs."""

    probes: Probes
    spans: list[list[Span]]
    second_place: Measured | None = None

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        spans = [[[getattr(span, name) for name in _KEPT] for span in run] for run in self.spans]
        place = self.second_place and asdict(self.second_place)
        content = {"probes": asdict(self.probes), "spans": spans, "second_place": place}
        path.write_text(json.dumps(content) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote."""
        content = json.loads(path.read_text(encoding="utf-8"))
        spans = [[Span(*span) for span in run] for run in content["spans"]]
        place = content.get("second_place")
        return cls(_probes(content["probes"]), spans, Measured(**place) if place else None)


def _probes(table: dict[str, Any]) -> Probes:
    link = LinkProbe(**{name: Measured(**one) for name, one in table.pop("link").items()})
    return Probes(link=link, **{name: Measured(**one) for name, one in table.items()})


def median_probes(rounds: Sequence[Round]) -> Probes:
    """Every probe at the round of its median: one that was really measured, with its own quartiles."""
    tables = [{**asdict(one.probes), "link": asdict(one.probes.link)} for one in rounds]
    link = {name: _middle([table["link"][name] for table in tables]) for name in tables[0]["link"]}
    rest = {name: _middle([table[name] for table in tables]) for name in tables[0] if name != "link"}
    return _probes({"link": link, **rest})


def median_second_place(rounds: Sequence[Round]) -> Measured | None:
    """That of the middle round; None where it was not measured."""
    found = [asdict(one.second_place) for one in rounds if one.second_place is not None]
    return Measured(**_middle(found)) if found else None


def _middle(measured: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return sorted(measured, key=lambda one: one["median"])[(len(measured) - 1) // 2]
