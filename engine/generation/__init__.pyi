from .checkpoint import (
    add_model as add_model,
    find_tokenizer as find_tokenizer,
    load_model as load_model,
    model_of as model_of,
)
from .generate import BatchDone as BatchDone, RunResult as RunResult, run as run, stats_of as stats_of
from .prompts import GenerationRequest as GenerationRequest
from .request_file import RequestFile as RequestFile
from .streaming import (
    OutputStream as OutputStream,
    RequestOutput as RequestOutput,
    StreamStats as StreamStats,
    stream as stream,
)
from .trace import as_cut as as_cut, describe_model as describe_model
