"""Several devices of one host calibrated: all measure the same at the same time, and then what is between them."""

from collections.abc import Callable
from dataclasses import replace

from engine.calibration import fit, measure
from engine.calibration.calibration import Calibration, calibrate
from engine.device import DeviceAsked, Rank, open_device
from engine.generation import ModelAsked, call_on_devices

_Progress = Callable[[int, int, str], None]


def calibrate_devices(
    model: ModelAsked,
    device: DeviceAsked,
    name: str = "this machine",
    *,
    num_devices: int,
    quick: bool = False,
    progress: _Progress | None = None,
) -> Calibration:
    """Measure so many devices and their host for a model, in a process each; what they share is shared meanwhile.

    Raises what `calibrate` raises, and InputError for a rank that is lost.
    """
    asked = {"model": model, "device": device, "name": name, "quick": quick, "progress": progress}
    found: Calibration = call_on_devices(_in_rank, num_devices, asked)
    return found


def _in_rank(
    model: ModelAsked, device: DeviceAsked, name: str, quick: bool, progress: _Progress | None, rank: Rank
) -> Calibration:
    def begin(done: int, total: int, doing: str) -> None:
        rank.gather(None)  # all begin together
        if progress is not None:
            progress(done, total, doing)

    with open_device(device, rank) as opened:
        own = calibrate(model.load(opened), opened, name, quick=quick, progress=begin)
        repeats = measure.FEW_REPEATS if quick else measure.REPEATS
        between = measure.network_probe(opened, rank, repeats)
    return replace(own, hardware=fit.of_devices(rank.gather(own.hardware), between))
