from .attend import DecodeAttention as DecodeAttention
from .batch import (
    BatchResult as BatchResult,
    MicroBatchAsked as MicroBatchAsked,
    TaskPerformer as TaskPerformer,
    make_micro_batch as make_micro_batch,
    run_batch as run_batch,
    until_end as until_end,
)
from .context import (
    BatchContext as BatchContext,
    Carried as Carried,
    GenerationOptions as GenerationOptions,
    RunContext as RunContext,
    Session as Session,
)
from .host import HostRoom as HostRoom, HostTime as HostTime, expert_exchange_bytes as expert_exchange_bytes
