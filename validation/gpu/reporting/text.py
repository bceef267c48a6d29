"""The text of a proof, for a window of 80 columns."""

import io
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape

from traces.cli import PROSE, TEXT, Report
from validation.campaign import IN_SHORT, layer_rows
from validation.gpu.piece import MET, SAID
from validation.gpu.reporting.energy import print_energy
from validation.gpu.reporting.summary import ProofSummary, shown_name

WIDTH = 80
GIGA = 1e9
MIB = 1024**2
LANES = ("GPU", "CPU", "H2D", "D2H", "PIN")

ONE_WAY = ("copies to the device", "copies from the device")
"""How the facts begin that are rates by size."""


def proof_text(summary: ProofSummary) -> str:
    """The whole report."""
    text = io.StringIO()
    _print_proof(summary, Report(Console(file=text, width=WIDTH, highlight=False)))
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def _print_proof(summary: ProofSummary, out: Report) -> None:
    settings = summary.record.settings
    out.say(f"[bold]A proof on {escape(settings['origin'])}[/bold], scale {settings['scale']}.", *_summed_up(summary))
    stages = {"stage": TEXT, "": TEXT, "done": "d", "failed": "d", "not done": "d", "s": ",.0f"}
    rows = ((f"{one.number} {one.name}", one.title, *_marks(one.done, one.failed, one.left_out), one.seconds)
            for one in summary.counts)  # fmt: skip
    out.table(stages, rows, "pieces of work")
    if summary.findings:
        layers = ([cell.replace("**", "") for cell in row] for row in layer_rows(summary.findings))
        columns = {"layer": TEXT, "question": PROSE, "found": PROSE, "bar": TEXT, "": TEXT}
        assert columns.keys() == IN_SHORT.keys()
        out.table(columns, layers, f"layers of validation: measured ({settings['origin']}), predicted (simulated)")
    for part in (_print_machine, _print_copies, _print_parity, _print_calibration):
        part(summary, out)
    for part in (_print_runs, print_energy, _print_peers, _print_times, _print_whole):
        part(summary, out)
    for title, lines in (("Failed", summary.failures), ("Left out", summary.left_out)):
        if lines:
            out.say(f"[bold]{title}[/bold]", *(f"- {escape(line)}" for line in lines))


def _marks(*counts: int) -> list[int | None]:
    return [count or None for count in counts]


def _summed_up(summary: ProofSummary) -> Iterator[str]:
    done, failed, left = (sum(getattr(one, name) for one in summary.counts) for name in ("done", "failed", "left_out"))
    yield f"{done} pieces of work came to an end, {failed} failed, {left} were left out."
    tokens = _numbers(summary, "tokens")
    if tokens:
        equal = sum(bool(one[MET]) for one in tokens.values())
        yield f"Tokens: {equal} of {len(tokens)} equal what plain generate() gives on the device."
    if summary.unchanged is not None:
        same = (
            "and is the one that traces are held against below" if summary.unchanged else "but it is NOT the one below"
        )
        yield f"Each prediction was written down before its run, {same}."
    for model, lost in summary.regrets.items():
        yield f"Taking the schedule that is predicted to be best for {model} loses {lost:.1%} of the best throughput."


def _numbers(summary: ProofSummary, stage: str) -> dict[str, Mapping[str, Any]]:
    """The results of a stage that have numbers."""
    return {name: one for name, one in summary.record.results(stage).items() if SAID not in one}


def _print_machine(summary: ProofSummary, out: Report) -> None:
    facts = summary.record.results("facts").get("machine")
    if facts:
        versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items() if version)
        memory = f"{facts['host_bytes'] / GIGA:.0f} GB of host memory"
        out.say(escape(f"{facts['system']}; {facts['cores']} cores, {memory}; {versions}."))
        if facts["nvidia_smi"]:
            out.say(escape(facts["nvidia_smi"]))


def _print_copies(summary: ProofSummary, out: Report) -> None:
    found = summary.record.results("facts")
    by_size = {name: one["bytes_per_s"] for name, one in found.items() if name.startswith(ONE_WAY)}
    sizes = sorted({int(size) for rates in by_size.values() for size in rates})
    if by_size:
        columns = {"": TEXT, **{_size(size): ".2f" for size in sizes}}
        rows = ((name.removeprefix("copies "), *(_giga(rates.get(str(size))) for size in sizes))
                for name, rates in by_size.items())  # fmt: skip
        out.table(columns, rows, "copies over the link, GB/s by size")
    for name, what in (("copies both ways at once, page-locked", "way"), ("copies in host memory", "threads")):
        if name in found:
            rates = found[name]["bytes_per_s"]
            out.table({what: TEXT, "GB/s": ".2f"}, ((key, _giga(rate)) for key, rate in rates.items()), name)
    if late := found.get("launches and events"):
        shown = ((name.removesuffix("_s").replace("_", " "), 1e6 * seconds) for name, seconds in late.items())
        out.table({"": TEXT, "µs": ".1f"}, shown, "launches and events")


def _print_parity(summary: ProofSummary, out: Report) -> None:
    rows = [
        (name, one["mean_difference"], one["max_difference"], one["equal_argmax"], _met(one))
        for name, one in _numbers(summary, "parity").items()
        if "mean_difference" in one
    ]
    if rows:
        columns = {"run": TEXT, "mean": ".2%", "largest": ".1%", "same best token": ".1%", "": TEXT}
        out.table(columns, rows, "bf16 logits against the plain model: differences as shares of the logits' spread")


def _print_calibration(summary: ProofSummary, out: Report) -> None:
    rows = []
    for name, one in _numbers(summary, "calibration").items():
        rates, peaks = one["bytes_per_s"], one["flop_per_s"]
        links = (_giga(rates[key]) for key in ("h2d", "d2h", "together", "h2d_pageable", "host_copy", "host_read"))
        rows.append((name, *links, peaks["device"] / 1e12, peaks["host"] / 1e12))
    if rows:
        columns = dict.fromkeys(("to device", "from", "both", "pageable", "host copy", "host read"), ".2f")
        out.table({"": TEXT, **columns, "device": ".2f", "host": ".3f"}, rows,
                  "calibration: copies and reads in GB/s, then matrix products in TFLOP/s")  # fmt: skip


def _print_runs(summary: ProofSummary, out: Report) -> None:
    if not summary.runs:
        return
    rates = {"run": TEXT, "tokens/s": ".1f", "predicted": ".1f", "error": "+.1%"}
    lanes = {f"{lane} busy": ".0%" for lane in LANES}
    links = {"H2D GB/s": ".2f", "D2H GB/s": ".2f", "cores": ".1f", "turn ms": ".2f"}
    memory = {"plan GB": ".2f", "held GB": ".2f", "reserved GB": ".2f"}
    rows = (_run_row(case, one, summary.predicted[case]) for case, one in summary.runs.items())
    origin = summary.record.settings["origin"]
    retried = max(one["device"].get("alloc_retries", 0) for one in summary.runs.values())
    out.table([rates, lanes, links, memory], rows, f"runs: measured ({origin}), predicted (simulated)")
    out.say(
        "Of several repeats the one in the middle. cores: of the host, busy on average, setting up included. turn: "
        "what the GPU lane's thread works for a micro-batch in a layer of decode (on a real device, the host's share). "
        "plan, held, reserved: device memory as planned, at its peak by the engine's account, and as torch reserved it."
    )
    if retried:
        out.say(f"Torch had to give back its cache and ask again {retried} times: each time the device stood still.")


def _run_row(case: str, one: Mapping[str, Any], said: Mapping[str, Any]) -> tuple[Any, ...]:
    lanes, expected = one["lanes"], said["tokens_per_s"]
    rates = (one["tokens_per_s"], expected, expected / one["tokens_per_s"] - 1)
    busy = (lanes[lane]["busy"] if lane in lanes else None for lane in LANES)
    memory = (said["plan_bytes"]["device"], one["peak_bytes"].get("device"), one["reserved_bytes"])
    links = (_rate(lanes, "H2D"), _rate(lanes, "D2H"), one["cores"], 1e3 * one["host"]["cpu_s_per_turn"])
    return (shown_name(case), *rates, *busy, *links, *map(_giga, memory))


def _print_peers(summary: ProofSummary, out: Report) -> None:
    rows = [(name, one.get("tokens_per_s"), one.get("batch_size"), one.get(SAID, ""))
            for name, one in summary.record.results("peers").items()]  # fmt: skip
    if rows:
        columns = {"": PROSE, "tokens/s": ".1f", "at a time": "d", "said": PROSE}
        out.table(columns, rows, "others on the same requests (no schedule of ours)")


def _print_times(summary: ProofSummary, out: Report) -> None:
    rows = [
        (schedule, lane, one["tasks"], one["ours_s"], one["profiler_s"], one["profiler_s"] / one["ours_s"] - 1,
         1e6 * one["median_apart_s"])
        for schedule, found in _numbers(summary, "times").items()
        for lane, one in found["lanes"].items()
        if one["ours_s"]
    ]  # fmt: skip
    if rows:
        clock = next(iter(_numbers(summary, "times").values()))["clock"]
        columns = {"run": TEXT, "lane": TEXT, "tasks": ",", "ours s": ".3f", "profiler s": ".3f", "difference": "+.1%"}
        out.table({**columns, "a task apart µs": ",.1f"}, rows, f"our times of tasks against the profiler's ({clock})")
        for schedule, found in _numbers(summary, "times").items():
            if "kernels_s" in found:
                lane_s = found["lanes"]["GPU"]["ours_s"]
                host = 1 - found["kernels_s"] / lane_s
                out.say(
                    f"{schedule}: kernels ran for {found['kernels_s']:.3f} of the GPU lane's {lane_s:.3f} s; the rest, "
                    f"{host:.0%}, is the host's share, with the profiler at work."
                )


def _print_whole(summary: ProofSummary, out: Report) -> None:
    found = _numbers(summary, "whole")
    if said := found.get("prediction"):
        layers = f"{said['layers']} of {said['layers_asked']} layers asked for"
        weights = f"{said['weight_bytes'] / GIGA:.1f} GB of weights page-locked"
        cap = f"{said['cap_bytes'] / GIGA:.0f} GB of device memory"
        out.say(
            f"[bold]Whole model[/bold]: {layers}, {weights}, {said['requests']} requests, {cap}. Predicted: "
            f"{said['tokens_per_s']:.2f} tokens/s, {said['plan_bytes']['device'] / GIGA:.2f} GB of the device."
        )
    if (run := found.get("run")) and said:
        reserved = "" if run["reserved_bytes"] is None else f", {_giga(run['reserved_bytes']):.2f} GB reserved"
        out.say(
            f"Measured: {run['tokens_per_s']:.2f} tokens/s ({said['tokens_per_s'] / run['tokens_per_s'] - 1:+.1%}), "
            f"decode {run['decode_s']:.2f} s, H2D at {_rate(run['lanes'], 'H2D'):.2f} GB/s, "
            f"{_giga(run['peak_bytes']['device']):.2f} GB held{reserved}; set up in {run['set_up_s']:.0f} s."
        )
    if summary.whole_order_error is not None:
        out.say(f"Its own durations replayed (layer 1): {summary.whole_order_error:+.1%} of the makespan.")


def _met(result: Mapping[str, Any]) -> str:
    return "" if MET not in result else "met" if result[MET] else "missed"


def _rate(lanes: Mapping[str, Any], lane: str) -> float | None:
    """GB/s of a lane while it was busy."""
    one = lanes.get(lane)
    return one["bytes"] / one["busy_s"] / GIGA if one and one["busy_s"] else None


def _giga(amount: float | None) -> float | None:
    return None if amount is None else amount / GIGA


def _size(num_bytes: int) -> str:
    return f"{num_bytes // MIB} MiB" if num_bytes >= MIB else f"{num_bytes // 1024} KiB"
