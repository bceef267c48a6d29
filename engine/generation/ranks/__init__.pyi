from .calling import as_rank as as_rank, call_on_devices as call_on_devices
from .merging import merged_stats as merged_stats, merged_trace as merged_trace
