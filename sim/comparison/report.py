"""What two commands tell a person.

`compare`: a table of results, what each lane did, and one sentence on why the best one wins. `list`: every preset and
schedule in a line, or one machine in full.
"""

from collections import Counter, defaultdict
from collections.abc import ItemsView, Iterable, Iterator, Mapping, Sequence
from typing import Any

from sim.comparison.comparison import Outcome
from sim.planning import DURATIONS, PEAKS, SPEEDS, headline, in_short, peaks_gb, seconds, speeds
from sim.problem import Basis, Hardware, Model, Problem, Workload
from sim.schedule import registered
from sim.simulation import WITHIN, Band, LaneSummary, Prediction, in_sentences
from traces.cli import PROSE, TEXT, WORDS, Report


def print_comparison(
    problem: Problem, outcomes: Sequence[Outcome], baseline: str | None, bands: Mapping[str, Band]
) -> None:
    """Print the whole report."""
    out, hardware = Report(), problem.hardware
    out.say(headline(problem))
    predictions = [one.prediction for one in outcomes if one.prediction]
    rates = {one.schedule: one.throughput_tokens_per_s for one in predictions}
    against = {"× slowest": min(rates.values(), default=0.0)}
    if baseline in rates:
        against[f"× {baseline}"] = rates[baseline]
    within = {WITHIN: ">"} if bands else {}
    core = {"schedule": TEXT, "policy": WORDS, "tokens/s": ",.2f", **within, **SPEEDS, **dict.fromkeys(against, ">")}
    times = {"bound by": TEXT, "over it": "+.0%", "GPU idle": ".0%", **DURATIONS}
    results = (_result(one, [*against.values()], bands.get(one.schedule)) for one in predictions)
    draws = {"J/token": ",.2f", "mean W": ",.0f"} if hardware.power else {}
    out.table([core, times, {**PEAKS, **draws, "HRM (× simulated)": ">"}], results)
    lanes = list(dict.fromkeys(name for one in predictions for name in one.lanes if ":" not in name))
    alike = f" (device 0 of {hardware.num_devices}, which are alike)" if hardware.num_devices > 1 else ""
    busy = ((one.schedule, *(_lane(one.lanes.get(name)) for name in lanes)) for one in predictions)
    out.table({"schedule": TEXT} | dict.fromkeys(lanes, ">"), busy, f"busy · waited mostly for{alike}")
    out.say(*_notes(outcomes), *_not_fitting(outcomes), _why(predictions))
    out.say(*(in_sentences(bands) if bands else ()), *_drawn(predictions), basis_of(problem.hardware))


def _result(one: Prediction, against: Sequence[float], band: Band | None) -> tuple[Any, ...]:
    speed, hrm = one.throughput_tokens_per_s, one.hrm_tokens_per_s
    bound = ", ".join(dict.fromkeys(phase.bottleneck for phase in (one.prefill, one.decode) if phase.bottleneck))
    within = (str(band.throughput_tokens_per_s),) if band else ()
    rates = speed, *within, *speeds(one), *(f"{speed / other:.2f}×" for other in against)
    times = bound, one.over_busiest, one.gpu_idle, seconds(one.prefill_s), seconds(one.decode_s)
    expected = hrm and f"{hrm:,.1f} ({hrm / speed:.1f}×)"
    energy = one.energy
    draws = (energy.j_per_token, energy.average_w) if energy else ()
    return one.schedule, in_short(one.policy), *rates, *times, *peaks_gb(one.setup), *draws, expected


def _lane(lane: LaneSummary | None) -> str:
    """Share of the time busy, and the op that the rest was mostly spent waiting for."""
    return " · ".join(filter(None, (f"{lane.utilisation:.0%}", lane.waited_most_for))) if lane else "–"


def _not_fitting(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Why there is nothing to show, once for all schedules of which it is true."""
    for reason, which in schedules_by((one.schedule, one.reason) for one in outcomes if one.prediction is None):
        yield f"{', '.join(which)}: {'do' if len(which) > 1 else 'does'} not fit: {reason}"


def _notes(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """What was chosen for schedules, once for all that got the same."""
    for note, which in schedules_by((one.schedule, one.note) for one in outcomes if one.note):
        yield f"{', '.join(which)}: {note}"


def schedules_by(texts: Iterable[tuple[str, str]]) -> ItemsView[str, list[str]]:
    """Texts that are said of schedules, each with those of which it is."""
    names = defaultdict[str, list[str]](list)
    for schedule, text in texts:
        if schedule not in names[text]:
            names[text].append(schedule)
    return names.items()


def _why(predictions: Sequence[Prediction]) -> str:
    """Why the best schedule wins, from the numbers."""
    best, *others = sorted(predictions, key=lambda one: -one.throughput_tokens_per_s)
    text = f"[bold]{best.schedule}[/bold] is fastest with {best.throughput_tokens_per_s:,.2f} tokens/s: {_busy(best)}"
    for other in others[:1]:
        text += f"; {other.schedule} comes next with {other.throughput_tokens_per_s:,.2f}: {_busy(other)}"
    return f"{text}."


def _drawn(predictions: Sequence[Prediction]) -> Iterator[str]:
    """What draws most of the power of the schedule that needs least of it for a token."""
    known = [(one, one.energy) for one in predictions]
    thriftiest = min(((one, energy) for one, energy in known if energy), key=lambda of: of[1].j_per_token, default=None)
    if thriftiest is not None:
        one, energy = thriftiest
        most_first = sorted(energy.by_component_j.items(), key=lambda of: -of[1])
        shares = ", ".join(f"{part} {joules / energy.total_j:.0%}" for part, joules in most_first[:3])
        yield f"{one.schedule} draws least, {energy.j_per_token:,.2f} J a token of the whole machine: {shares}."


def _busy(one: Prediction) -> str:
    """The lane that decides, and how much of the time it works."""
    phase, name = (one.decode, "decode") if one.decode_s > one.prefill_s else (one.prefill, "prefill")
    share, lane = phase.busiest_s / phase.span_s, one.lanes[phase.bottleneck]
    text = f"in {name} its busiest lane, {phase.bottleneck}, works {min(share, 1.0):.0%} of the time"
    return text + (f" and mostly waits for {lane.waited_most_for}" if share < 0.97 and lane.waited_most_for else "")


def basis_of(hardware: Hardware) -> str:
    """How the numbers of a machine are known, in a sentence."""
    counts = Counter(quantity.basis for _, quantity in hardware.quantities())
    kinds = ", ".join(f"{counts[basis]} {basis}" for basis in Basis if counts[basis])
    others = ", ".join(one.name for one in hardware.other_devices)
    unused = f" Not planned with, as it is not equal: {others}." if others else ""
    return f"Hardware numbers: {kinds}. Each with its source: python -m sim list {hardware.name}{unused}"


def known() -> dict[str, dict[str, str]]:
    """What there is, by kind and name, with a line on each: schedules, models, machines and workloads."""
    return {
        "schedule": {name: schedule.summary for name, schedule in registered().items()},
        "model": {name: str(Model.load(name)).partition(": ")[2] for name in Model.presets()},
        "hardware": {name: Hardware.load(name).description for name in Hardware.presets()},
        "workload": {name: _workload(Workload.load(name)) for name in Workload.presets()},
    }


def print_known() -> None:
    """Schedules, models, machines and workloads, one line each."""
    out = Report()
    for kind, lines in known().items():
        out.table({kind: TEXT, "what it is": PROSE}, lines.items())


def _workload(one: Workload) -> str:
    return (
        f"prompts of {one.mean_prompt_tokens:.0f} tokens on average, {one.max_prompt_tokens} at most, "
        f"{one.gen_len} generated"
    )


def numbers(hardware: Hardware) -> dict[str, Any]:
    """Every number of one machine with its basis and source, as JSON values."""
    fields = ("value", "unit", "basis", "source")
    table = {path: {name: getattr(one, name) for name in fields} for path, one in hardware.quantities()}
    return {"name": hardware.name, "description": hardware.description, "numbers": table}


def print_hardware(hardware: Hardware) -> None:
    """Every number of one machine with its basis and source; sources stand below, each once."""
    out, quantities = Report(), list(hardware.quantities())
    sources = list(dict.fromkeys(one.source for _, one in quantities))
    rows = ((path, one.text, one.basis, f"[{1 + sources.index(one.source)}]") for path, one in quantities)
    title = f"{hardware.name}: {hardware.description}"
    out.table({"number": TEXT, "value": ">", "basis": TEXT, "source": ">"}, rows, title)
    out.table({"": ">", "source": PROSE}, ((f"[{at}]", text) for at, text in enumerate(sources, 1)))
