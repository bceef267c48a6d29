from .fit import FittedRates as FittedRates, fit_rates as fit_rates
from .predict import PredictedRate as PredictedRate, predict_rates as predict_rates
from .report import print_rate_fits as print_rate_fits, print_rates as print_rates, with_basis as with_basis
from .rows import (
    LATENCY as LATENCY,
    BadRow as BadRow,
    LatencyRow as LatencyRow,
    is_latency_file as is_latency_file,
    read_latency_rows as read_latency_rows,
)
