from .cases import (
    END as END,
    FIRST_TOKEN as FIRST_TOKEN,
    PAD as PAD,
    STREAMS as STREAMS,
    EndsAsToldByPrompt as EndsAsToldByPrompt,
    StreamCase as StreamCase,
    StreamGrid as StreamGrid,
)
from .findings import StreamFindings as StreamFindings, analyse_streams as analyse_streams
from .picture import draw_latencies as draw_latencies
from .report import streams_markdown as streams_markdown
