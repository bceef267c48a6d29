from .fit import CASES as CASES, Fitted as Fitted, machines as machines, usable as usable
from .holdout import HeldOut as HeldOut, folds as folds, without_setting as without_setting
from .kernels import predict_kernels as predict_kernels
from .latency import (
    FITTED_ROWS as FITTED_ROWS,
    LATENCY as LATENCY,
    Metric as Metric,
    machine_of_row as machine_of_row,
    pose_rate as pose_rate,
    read_latency_rows as read_latency_rows,
)
from .predict import Predicted as Predicted, predict_all as predict_all
from .presets import PRESETS as PRESETS, write_presets as write_presets
from .report import print_fits as print_fits, print_kernels as print_kernels, print_report as print_report
from .rows import THROUGHPUT as THROUGHPUT, Row as Row, read_rows as read_rows
from .setups import machine_of as machine_of, pose as pose
