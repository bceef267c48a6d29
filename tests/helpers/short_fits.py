"""Calibrations in tests of something else: of the shares that an emulated device's lanes may have, few are tried.

All of them are simulated for every run with several lanes at work, which takes longer than the runs. What is found is
less exact; `tests/engine/test_calibration.py` looks for it among all.
"""

from contextlib import contextmanager

import pytest


@contextmanager
def few_shares():
    """While entered, calibrations of this process try four pairs of shares."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engine.calibration.fit.interference.INTERPRETER_SHARES", (0.5, 1.0))
        patch.setattr("engine.calibration.fit.interference.BESIDE_STREAM", (0.8, 1.0))
        yield
