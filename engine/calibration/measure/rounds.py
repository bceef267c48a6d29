"""A round of measurements as a file, so that a long campaign can measure the machine again and again and fit to all."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, Self

from engine.calibration.measure.host_experts import Beside, HostExpertsTime
from engine.calibration.measure.measured import Measured
from engine.calibration.measure.probes import LinkProbe, Probes
from engine.calibration.measure.watts import Watts
from traces.trace import Span

_KEPT = ("id", "op", "lane", "rank", "step", "layer", "micro_batch", "page", "start_ns", "end_ns")


@dataclass(frozen=True, slots=True)
class Round:
    """One round: the probes, per run of the calibration the spans of its tasks, and what is known of the experts alone.

    That is what it costs to split them, how fast the device unpacks them, what they take on the host, and how fast that
    computes with packed ones. `watts` are what device and host draw, where that was looked for.
    """

    probes: Probes
    spans: list[list[Span]]
    split_cost: Measured | None = None
    unpack_rate: Measured | None = None
    host_experts: list[HostExpertsTime] = field(default_factory=list)
    host_unpack_rate: Measured | None = None
    watts: Watts | None = None

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        spans = [[[getattr(span, name) for name in _KEPT] for span in run] for run in self.spans]
        names = ("split_cost", "unpack_rate", "host_experts", "host_unpack_rate", "watts")
        alone = {name: getattr(self, name) for name in names}
        content = {"probes": asdict(self.probes), "spans": spans, **alone}
        path.write_text(json.dumps(content, default=asdict) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote."""
        content = json.loads(path.read_text(encoding="utf-8"))
        spans = [[Span(*span) for span in run] for run in content["spans"]]
        cost = content.get("split_cost", content.get("second_place"))  # its name in files of earlier versions
        rates = (content.get("unpack_rate"), content.get("host_unpack_rate"))
        split_cost, unpack_rate, on_host_rate = (Measured(**one) if one else None for one in (cost, *rates))
        on_host = [_host_experts(**one) for one in content.get("host_experts", ())]
        watts = Watts(**content["watts"]) if content.get("watts") else None
        return cls(_probes(content["probes"]), spans, split_cost, unpack_rate, on_host, on_host_rate, watts)


def _probes(table: dict[str, Any]) -> Probes:
    link = LinkProbe(**{name: Measured(**one) for name, one in table.pop("link").items()})
    return Probes(link=link, **{name: Measured(**one) for name, one in table.items()})


def _host_experts(tokens: int, beside: str, seconds: dict[str, Any]) -> HostExpertsTime:
    return HostExpertsTime(tokens, Beside(beside), Measured(**seconds))


def median_probes(rounds: Sequence[Round]) -> Probes:
    """Every probe at the round of its median: one that was really measured, with its own quartiles."""
    return _probes(_middle([asdict(one.probes) for one in rounds]))


def median_split_cost(rounds: Sequence[Round]) -> Measured | None:
    """That of the middle round; None where it was not measured."""
    return _middle_of([one.split_cost for one in rounds])


def median_unpack_rate(rounds: Sequence[Round]) -> Measured | None:
    """That of the middle round; None where it was not measured."""
    return _middle_of([one.unpack_rate for one in rounds])


def median_host_unpack_rate(rounds: Sequence[Round]) -> Measured | None:
    """That of the middle round; None where it was not measured."""
    return _middle_of([one.host_unpack_rate for one in rounds])


def median_watts(rounds: Sequence[Round]) -> Watts | None:
    """The median of each number over the rounds that have the counters of the last one; None where none looked."""
    found = [one.watts for one in rounds if one.watts is not None]
    alike = [one for one in found if one.counters == found[-1].counters]
    if not alike:
        return None
    watts = {
        doing: {name: median(one.watts[doing][name] for one in alike) for name in of}
        for doing, of in alike[-1].watts.items()
    }
    rates = {doing: median(one.bytes_per_s[doing] for one in alike) for doing in alike[-1].bytes_per_s}
    return replace(alike[-1], watts=watts, bytes_per_s=rates)


def _middle_of(measured: Sequence[Measured | None]) -> Measured | None:
    found = [asdict(one) for one in measured if one is not None]
    return Measured(**_middle(found)) if found else None


def median_host_experts(rounds: Sequence[Round]) -> list[HostExpertsTime]:
    """Those of the middle round, each for itself."""
    found: dict[tuple[int, Beside], list[dict[str, Any]]] = {}
    for one in (time for measured in rounds for time in measured.host_experts):
        found.setdefault((one.tokens, one.beside), []).append(asdict(one.seconds))
    return [HostExpertsTime(*key, Measured(**_middle(seconds))) for key, seconds in found.items()]


def _middle(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The measurement in the middle; of tables of measurements, for each name."""
    if "median" in found[0]:
        return sorted(found, key=lambda one: one["median"])[(len(found) - 1) // 2]
    return {name: _middle([table[name] for table in found]) for name in found[0]}
