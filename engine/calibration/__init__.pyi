from .calibration import (
    calibrate as calibrate,
    described as described,
    fitted as fitted,
    measure_machine as measure_machine,
    planned_for as planned_for,
)
from .command import bar as bar
from .measure import Attempt as Attempt, Round as Round, once as once
