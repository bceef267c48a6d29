from .calling import call_on_devices as call_on_devices, joined_ranks as joined_ranks
from .merging import merged_stats as merged_stats, merged_trace as merged_trace
