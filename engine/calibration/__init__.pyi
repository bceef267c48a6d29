from .calibration import (
    Calibration as Calibration,
    calibrate as calibrate,
    described as described,
    fitted as fitted,
    measure_machine as measure_machine,
    planned_for as planned_for,
)
from .devices import calibrate_devices as calibrate_devices
from .measure import Attempt as Attempt, Round as Round, once as once
