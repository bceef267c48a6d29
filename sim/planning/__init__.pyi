from .grid import PolicyGrid as PolicyGrid
from .planner import NothingFitsError as NothingFitsError, best_policy as best_policy
from .report import (
    DURATIONS as DURATIONS,
    PEAKS as PEAKS,
    SPEEDS as SPEEDS,
    headline as headline,
    in_short as in_short,
    peaks_gb as peaks_gb,
    seconds as seconds,
    speeds as speeds,
)
