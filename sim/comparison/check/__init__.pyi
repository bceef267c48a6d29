from .answer import (
    SpeedAnswer as SpeedAnswer,
    SpeedCheck as SpeedCheck,
    Verdict as Verdict,
    check_measured as check_measured,
)
from .formats import read_measurements as read_measurements, read_run_setting as read_run_setting
from .measurement import Measurement as Measurement, RunSetting as RunSetting, Speed as Speed
from .report import print_check as print_check
