from .accuracy import OpAccuracy as OpAccuracy, What as What, what_of as what_of
from .checks import Replay as Replay, replay_trace as replay_trace
from .energy import COUNTED as COUNTED, EnergyCheck as EnergyCheck
from .picture import draw as draw
from .rebuild import rebuild_setup as rebuild_setup, recorded as recorded
from .report import print_replay as print_replay
from .streams import (
    LatencyCheck as LatencyCheck,
    RecordedStream as RecordedStream,
    StreamCheck as StreamCheck,
    latency_checks as latency_checks,
    times_in as times_in,
)
