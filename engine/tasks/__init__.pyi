from .batch import BatchResult as BatchResult, run_batch as run_batch
from .context import GenerationOptions as GenerationOptions, RunContext as RunContext, Session as Session
from .host_room import expert_exchange_bytes as expert_exchange_bytes
from .host_time import HostTime as HostTime
