from .calling import call_on_devices as call_on_devices
from .merging import merged_stats as merged_stats, merged_trace as merged_trace
from .together import (
    DevicesTogether as DevicesTogether,
    add_devices as add_devices,
    devices_together as devices_together,
)
