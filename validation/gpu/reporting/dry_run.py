"""What a proof would do: stages, bytes and minutes, without doing any of it."""

from collections.abc import Iterator, Sequence
from typing import Any

from traces.cli import PROSE, TEXT, Report
from validation.gpu.proof import TimeBudget, stage_shares_s
from validation.gpu.stages import REPORT, STAGES
from validation.gpu.workbench import Workbench, available_host_bytes, weight_bytes

GIGA = 1e9


def print_dry_run(bench: Workbench, numbers: Sequence[int], minutes: float | None) -> None:
    """Print the stages that are asked for, and the models with what they take."""
    out = Report()
    limit = "no limit of time" if minutes is None else f"{minutes:g} minutes"
    out.say(f"A proof on {bench.origin}, scale {bench.record.settings['scale']}, {limit}: nothing is run.")
    asked = [(number, STAGES[number]) for number in numbers if number < REPORT]
    shares_s = stage_shares_s([stage for _, stage in asked], TimeBudget(minutes))
    rows: list[tuple[Any, ...]] = []
    for (number, stage), share_s in zip(asked, shares_s, strict=True):
        pieces = list(stage.pieces(bench))
        wanted = sum(piece.seconds for piece in pieces) / 60
        rows.append((f"{number} {stage.name}", stage.title, len(pieces), wanted, minutes and share_s / 60))
    if REPORT in numbers:
        rows.append((f"{REPORT} report", "text, picture, JSON", 1, bench.scale.seconds["report"] / 60, None))
    rows.append(("all", "", sum(row[2] for row in rows), sum(row[3] for row in rows), minutes))
    columns = {"stage": TEXT, "": PROSE, "pieces": "d", "minutes, guessed": ".1f", "its part": ".1f"}
    out.table(columns, rows, "stages")
    columns = {"model": TEXT, "layers": "d", "host GB": ".2f", "device GB": ".2f"}
    out.table(columns, _models(bench), "models, and what of the device each run may use")
    out.say(f"This host has {available_host_bytes() / GIGA:.0f} GB of memory free; the folder gets 7 files.")


def _models(bench: Workbench) -> Iterator[tuple[Any, ...]]:
    scale = bench.scale
    for name, spec in scale.models.items():
        yield (
            f"{name}: {spec.config}",
            spec.layers,
            weight_bytes(bench.described(name)) / GIGA,
            spec.device_bytes / GIGA,
        )
    whole = scale.whole
    host_bytes = weight_bytes(bench.described(whole.model, whole.layers))
    yield f"whole {whole.model}", whole.layers, host_bytes / GIGA, whole.device_bytes / GIGA
