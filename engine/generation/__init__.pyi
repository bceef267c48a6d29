from .asked import (
    GenerationRequest as GenerationRequest,
    check_kind as check_kind,
    check_length as check_length,
    check_seed as check_seed,
    checked_arguments as checked_arguments,
    pad_token as pad_token,
    prompt_ids as prompt_ids,
)
from .checkpoint import (
    ModelAsked as ModelAsked,
    add_model as add_model,
    draws_by_itself as draws_by_itself,
    find_tokenizer as find_tokenizer,
    load_config as load_config,
    load_model as load_model,
    model_asked as model_asked,
    model_of as model_of,
)
from .files import RequestFile as RequestFile
from .generate import BatchDone as BatchDone, RunResult as RunResult, run as run, stats_of as stats_of
from .ranks import (
    DevicesTogether as DevicesTogether,
    add_devices as add_devices,
    call_on_devices as call_on_devices,
    devices_together as devices_together,
)
from .rows import by_length as by_length
from .streaming import (
    OutputStream as OutputStream,
    RequestOutput as RequestOutput,
    StreamStats as StreamStats,
    joins_of as joins_of,
    most_held as most_held,
    stream as stream,
)
from .trace import (
    Stats as Stats,
    as_cut as as_cut,
    describe_model as describe_model,
    make_trace as make_trace,
)
