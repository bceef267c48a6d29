from .asked import (
    GenerationRequest as GenerationRequest,
    check_kind as check_kind,
    check_seed as check_seed,
    checked_arguments as checked_arguments,
)
from .checkpoint import (
    Checkpoint as Checkpoint,
    add_model as add_model,
    checkpoint_of as checkpoint_of,
    draws_by_itself as draws_by_itself,
    find_tokenizer as find_tokenizer,
    load_config as load_config,
    load_model as load_model,
    model_of as model_of,
)
from .files import RequestFile as RequestFile
from .generate import BatchDone as BatchDone, RunResult as RunResult, run as run, stats_of as stats_of
from .ranks import (
    Together as Together,
    add_devices as add_devices,
    call_on_devices as call_on_devices,
    devices_together as devices_together,
)
from .streaming import (
    OutputStream as OutputStream,
    RequestOutput as RequestOutput,
    StreamStats as StreamStats,
    joins_of as joins_of,
    most_held as most_held,
    stream as stream,
)
from .trace import as_cut as as_cut, describe_model as describe_model
