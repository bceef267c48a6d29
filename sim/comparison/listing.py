"""What `python -m sim list` shows: every preset and schedule in a line, or one machine in full."""

from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.table import Table

from sim.problem import Hardware, Model, Workload
from sim.schedule import registered
from traces.cli import console


def print_known() -> None:
    """Schedules, models, machines and workloads, one line each."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    _section(table, "schedules", ((name, schedule.summary) for name, schedule in registered().items()))
    _section(table, "models", ((name, str(Model.load(name)).partition(": ")[2]) for name in Model.presets()))
    _section(table, "hardware", ((name, Hardware.load(name).description) for name in Hardware.presets()))
    _section(table, "workloads", ((name, _workload(name)) for name in Workload.presets()))
    console().print(table)


def _section(table: Table, title: str, rows: Iterable[tuple[str, str]]) -> None:
    table.add_row(f"[underline]{title}[/underline]", "")
    for name, text in rows:
        table.add_row(f"  {name}", text)
    table.add_section()


def _workload(name: str) -> str:
    workload = Workload.load(name)
    return (
        f"prompts of {workload.mean_prompt_tokens:.0f} tokens on average, {workload.max_prompt_tokens} at most, "
        f"{workload.gen_len} generated"
    )


def print_hardware(name: str) -> None:
    """Every number of one machine with its basis and source."""
    hardware = Hardware.load(name)
    table = Table(
        box=SIMPLE_HEAD, pad_edge=False, title=f"{hardware.name}: {hardware.description}", title_justify="left"
    )
    table.add_column("number", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("basis", no_wrap=True)
    table.add_column("source")
    for path, quantity in hardware.quantities():
        table.add_row(path, quantity.text, quantity.basis, quantity.source)
    console().print(table)
