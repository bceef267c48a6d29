"""What `python -m sim list` shows: every preset and schedule in a line, or one machine in full."""

from sim.problem import Hardware, Model, Workload
from sim.schedule import registered
from traces.cli import PROSE, TEXT, Report


def print_known() -> None:
    """Schedules, models, machines and workloads, one line each."""
    out = Report()
    known = {
        "schedule": {name: schedule.summary for name, schedule in registered().items()},
        "model": {name: str(Model.load(name)).partition(": ")[2] for name in Model.presets()},
        "hardware": {name: Hardware.load(name).description for name in Hardware.presets()},
        "workload": {name: _workload(Workload.load(name)) for name in Workload.presets()},
    }
    for kind, lines in known.items():
        out.table({kind: TEXT, "what it is": PROSE}, lines.items())


def _workload(one: Workload) -> str:
    return (
        f"prompts of {one.mean_prompt_tokens:.0f} tokens on average, {one.max_prompt_tokens} at most, "
        f"{one.gen_len} generated"
    )


def print_hardware(name: str) -> None:
    """Every number of one machine with its basis and source; sources stand below, each once."""
    out, hardware = Report(), Hardware.load(name)
    quantities = list(hardware.quantities())
    sources = list(dict.fromkeys(one.source for _, one in quantities))
    numbers = ((path, one.text, one.basis, f"[{1 + sources.index(one.source)}]") for path, one in quantities)
    title = f"{hardware.name}: {hardware.description}"
    out.table({"number": TEXT, "value": ">", "basis": TEXT, "source": ">"}, numbers, title)
    out.table({"": ">", "source": PROSE}, ((f"[{at}]", text) for at, text in enumerate(sources, 1)))
