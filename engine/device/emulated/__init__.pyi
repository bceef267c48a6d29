from .device import (
    EmulatedDevice as EmulatedDevice,
    EmulatedLane as EmulatedLane,
    keep_freed_memory as keep_freed_memory,
)
