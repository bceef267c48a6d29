"""What predictions of published rows are asked for."""

CGOPIPE_BAR = 0.12
"""Largest mean absolute error of cgopipe rows."""

BASELINE_BAR = 0.25
"""Largest mean absolute error of the rows of other systems."""

TIE = 0.02
"""Gap of measured throughputs, as a share of the larger, below which two systems are not told apart: the least noise
that repetitions of one configuration show (2 to 8 %, once 31 %).
"""

RANKING_BAR = 0.95
"""Least share of cells whose systems come out in the published order."""
