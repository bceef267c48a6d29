"""Calibrations in tests of something else: a machine is probed once, and the rest is fitted roughly.

What is found so is not exact; that the whole of it finds machines again, `tests/engine/test_calibration.py` shows.
"""

from contextlib import contextmanager
from functools import partial

import pytest
from scipy.optimize import least_squares

from engine.calibration import measure

STEPS = 4
"""Of each fit, at most."""


@contextmanager
def short_calibrations():
    """While entered, calibrations of this process are short; they are of one device.

    Of the shares that an emulated device's lanes may have few are tried: each is simulated for every run with several
    lanes at work.
    """
    probe, found = measure.probe, {}

    def once(device, *how):
        if how not in found:
            found[how] = probe(device, *how)
        return found[how]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engine.calibration.measure.probe", once)
        patch.setattr("engine.calibration.fit.interference.INTERPRETER_SHARES", (0.5, 1.0))
        patch.setattr("engine.calibration.fit.interference.BESIDE_STREAM", (0.8, 1.0))
        patch.setattr("engine.calibration.fit.roofs.least_squares", partial(least_squares, max_nfev=STEPS))
        patch.setattr("engine.calibration.measure.watts.WARM_S", 0.0)
        patch.setattr("engine.calibration.measure.watts.STEADY_S", 0.05)
        yield
