from .fit import FITTED_ROWS as FITTED_ROWS, FittedRates as FittedRates, fit_rates as fit_rates
from .joules import (
    JOULES as JOULES,
    JoulesRow as JoulesRow,
    PredictedJoules as PredictedJoules,
    predict_joules as predict_joules,
    print_joules as print_joules,
    read_joules_rows as read_joules_rows,
)
from .pose import pose_rate as pose_rate
from .predict import PredictedRate as PredictedRate, machine_of_row as machine_of_row, predict_rates as predict_rates
from .report import print_rate_fits as print_rate_fits, print_rates as print_rates, with_basis as with_basis
from .rows import (
    LATENCY as LATENCY,
    BadRow as BadRow,
    LatencyRow as LatencyRow,
    Metric as Metric,
    is_latency_file as is_latency_file,
    read_latency_rows as read_latency_rows,
)
