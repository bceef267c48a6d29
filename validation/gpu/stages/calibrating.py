"""Stage 3: the machine in numbers for each model, before any run is predicted."""

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

from engine.calibration import Round, fitted, measure_machine, planned_for
from traces.files import appearing
from validation.gpu.piece import Piece
from validation.gpu.record import NotReadyError
from validation.gpu.stages.running import PREDICTIONS
from validation.gpu.workbench import Workbench


def calibration_pieces(bench: Workbench) -> Iterator[Piece]:
    """A round for each model, then further rounds; every round makes the machine anew from all of them."""
    for number in range(bench.scale.calibration_rounds):
        for name in bench.scale.models:
            seconds = bench.scale.seconds["calibration"]
            yield Piece(f"{name}, round {number + 1}", seconds, partial(_measure, bench, name, number))


def _measure(bench: Workbench, name: str, number: int) -> dict[str, Any]:
    if number and f"{PREDICTIONS}, {name}" in bench.record.results("runs"):
        raise NotReadyError("runs are predicted by the machine as it is")
    quick, model = bench.scale.quick_calibration, bench.model(name)
    with bench.device(bench.spec(name).device_bytes) as device:
        planned = planned_for(model, device.memory_bytes, quick=quick)
        found = measure_machine(model, device, planned, quick=quick)
        bench.record.keep(f"calibration-{name}.{number}.json", found.write)
        with bench.record.unpacked(f"calibration-{name}.") as files:
            done = [Round.read(file) for file in files]
        calibration = fitted(model, device, planned, done, f"machine-{name}")
    with appearing(bench.record.machine_file(name)) as path:
        calibration.hardware.write(path)
    link, of = calibration.probes.link, calibration.probes
    rates = {"h2d": link.h2d, "d2h": link.d2h, "h2d_pageable": link.h2d_pageable, "d2h_pageable": link.d2h_pageable}
    rates |= {"together": link.together, "host_copy": of.host_copy, "host_read": of.host_read}
    return {
        "rounds": len(done),
        "bytes_per_s": {what: one.median for what, one in rates.items()},
        "flop_per_s": {"device": of.device_peak.median, "host": of.host_peak.median},
        "watts": None if calibration.watts is None else asdict(calibration.watts),
        "fits": [
            {"what": one.what, "median_error": one.median_error, "worst_error": one.worst_error}
            for one in calibration.fits
        ],
    }
