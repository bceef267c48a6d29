from .admission import Admission as Admission
from .arguments import StreamOptions as StreamOptions, add_stream as add_stream, stream_options as stream_options
from .composition import Chunk as Chunk, Composition as Composition, Decoding as Decoding
from .requests import (
    Arrivals as Arrivals,
    Lengths as Lengths,
    RequestStream as RequestStream,
    StreamedRequest as StreamedRequest,
)
from .rules import (
    BLOCK_TOKENS as BLOCK_TOKENS,
    MEASURED_BLOCK_TOKENS as MEASURED_BLOCK_TOKENS,
    AdmissionRules as AdmissionRules,
    Joins as Joins,
    KvLayers as KvLayers,
    Priority as Priority,
    Prompts as Prompts,
    Service as Service,
    attention_slowdown as attention_slowdown,
)
