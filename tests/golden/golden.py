"""What the commands say, reduced to what must not change: `python tests/golden/golden.py` writes it anew.

Numbers are compared to 1e-9 of themselves. Wall-clock times, how much was simulated, versions and hashes are left out.
"""

import contextlib
import gzip
import io
import json
import math
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from cases import CASES, INPUTS, Case

from sim.problem import Hardware, Model, Workload
from sim.schedule import registered

RESULTS = Path(__file__).with_name("results")
LEFT_OUT = frozenset({"wall_s", "num_simulated", "version", "versions", "input_hash", "inputs", "schema"})
TOLERANCE = 1e-9


def answer(case: Case) -> dict[str, Any]:
    """Run the command in this process; its exit code, its JSON, and what it said went wrong."""
    main = import_module(f"{case.package}.cli").main
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        sweeps = case.arguments[0] == "sweep"
        target = ["--out", str(rows)] if sweeps else ["--json", "-"]
        jobs = ["--jobs", "1"] if case.arguments[0] == "compare" else []
        if case.arguments[0] in ("compare", "plan") and not case.name.endswith("-band"):
            jobs.append("--no-band")
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([*case.arguments, *jobs, *target])
        if sweeps:
            found: Any = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
        else:
            found = json.loads(out.getvalue()) if out.getvalue() else None
            if found is not None and found.keys() == {"schema", "rows"}:  # was a list when the set was made
                found = found["rows"]
    return {"exit": code, "json": kept(found), "error": err.getvalue().replace(str(INPUTS), "INPUTS") if code else ""}


def known() -> dict[str, Any]:
    """What `list` shows: every schedule, model, workload and machine, each number of it with its basis."""
    found = {
        "schedules": {name: schedule.summary for name, schedule in registered().items()},
        "models": {name: str(Model.load(name)) for name in Model.presets()},
        "workloads": {name: asdict(Workload.load(name)) for name in Workload.presets()},
        "hardware": {name: _numbers(Hardware.load(name)) for name in Hardware.presets()},
    }
    return dict(json.loads(json.dumps(found)))


def _numbers(machine: Hardware) -> dict[str, Any]:
    numbers = {path: [float(one), one.text, str(one.basis), one.source] for path, one in machine.quantities()}
    return {"description": machine.description, "num_devices": machine.num_devices, "numbers": numbers}


def kept(value: Any) -> Any:
    """A JSON value without what differs from run to run."""
    if isinstance(value, dict):
        return {key: kept(one) for key, one in value.items() if key not in LEFT_OUT}
    return [kept(one) for one in value] if isinstance(value, list) else value


def differences(was: Any, now: Any, where: str = "") -> Iterator[str]:
    """Where two JSON values differ."""
    if isinstance(was, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*was, *now]):
            if key not in was or key not in now:
                yield f"{where}.{key}: only {'now' if key in now else 'before'}"
            else:
                yield from differences(was[key], now[key], f"{where}.{key}")
    elif isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        for at, (one, other) in enumerate(zip(was, now, strict=True)):
            yield from differences(one, other, f"{where}[{at}]")
    elif isinstance(was, float) or isinstance(now, float):
        numbers = isinstance(was, int | float) and isinstance(now, int | float)
        if not numbers or not math.isclose(was, now, rel_tol=TOLERANCE, abs_tol=1e-12):
            yield f"{where}: {was!r} became {now!r}"
    elif was != now:
        yield f"{where}: {was!r} became {now!r}"


def stored(name: str) -> Any:
    """What a case said when the set was made."""
    return json.loads(gzip.decompress((RESULTS / f"{name}.json.gz").read_bytes()))


def write(name: str, value: Any) -> None:
    """Store an answer; equal answers give equal bytes."""
    text = json.dumps(value, ensure_ascii=False)
    (RESULTS / f"{name}.json.gz").write_bytes(gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    for one in CASES:
        if len(sys.argv) == 1 or one.name in sys.argv[1:]:
            write(one.name, answer(one))
    write("list", known())
