"""Writes fitted values into machines' files, line by line, so that everything else in them stays as it is."""

import re
from collections.abc import Mapping
from pathlib import Path

import sim
from sim.problem import Hardware, Quantity
from traces.cli import writing
from traces.errors import InputError
from validation.published.fit import Fitted

PRESETS = Path(sim.__file__).parent / "presets" / "hardware"

DIGITS = 4
"""Significant digits of a fitted value: more than the noise of the runs carries."""


def write_presets(fits: list[Fitted], folder: Path = PRESETS) -> list[Path]:
    """Set every fitted number in its machine's file in `folder`. Raises InputError where the file lacks its line."""
    written: dict[Path, None] = {}
    for one in fits:
        case = one.case
        for parameter in case.parameters:
            several = [case.several] if case.several and (parameter.several_devices or parameter.by_cores) else []
            for machine in several if parameter.several_devices else [case.machine, *several]:
                value = one.values[parameter.name] * case.scale(parameter, Hardware.load(machine))
                numbers = dict.fromkeys(parameter.paths, value)
                by_cores = ", in proportion to the cores" if parameter.by_cores and machine != case.machine else ""
                written[set_numbers(machine, numbers, one.source + by_cores, folder)] = None
    return list(written)


def set_numbers(machine: str, numbers: Mapping[str, float], source: str, folder: Path = PRESETS) -> Path:
    """Set numbers of a preset in its file, in SI units. Raises InputError where the file lacks the line of one."""
    path = folder / f"{machine}.toml"
    text = path.read_text(encoding="utf-8")
    for number, value in numbers.items():
        text = _with_number(text, number, value, source, path)
    writing(path, lambda name: Path(name).write_text(text, encoding="utf-8"))
    return path


def _with_number(text: str, number: str, si_value: float, source: str, path: Path) -> str:
    """The file with the line of one number replaced; its unit stays."""
    table, _, key = number.rpartition(".")
    lines, inside = text.splitlines(), not table
    for at, line in enumerate(lines):
        heading = re.fullmatch(r"\[([^\]]+)\]\s*(#.*)?", line.strip())
        if heading:
            inside = heading[1] == table
        unit = re.search(r'unit = "([^"]+)"', line) if inside and re.match(rf"{key}\s*=", line) else None
        if unit:
            scale = Quantity(1.0, unit[1])
            value = f"{si_value / scale:.{DIGITS}g}"
            lines[at] = f'{key} = {{ value = {value}, unit = "{unit[1]}", basis = "fitted", source = "{source}" }}'
            return "\n".join(lines) + "\n"
    raise InputError(f"{path}: has no line for {number}; add one, with any value, for the fit to replace")
