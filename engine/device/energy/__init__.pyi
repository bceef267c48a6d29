from .counter import (
    DEVICE as DEVICE,
    HOST as HOST,
    HOST_MEMORY as HOST_MEMORY,
    EnergyCounter as EnergyCounter,
    EnergyCounters as EnergyCounters,
    NoCounterError as NoCounterError,
)
from .find import counters_of as counters_of, gpu_counter as gpu_counter
from .meter import EnergyMeter as EnergyMeter
from .use import EnergyUse as EnergyUse
