from .cases import STREAMS as STREAMS, StreamCase as StreamCase, StreamGrid as StreamGrid
from .findings import StreamFindings as StreamFindings, analyse_streams as analyse_streams
from .picture import draw_latencies as draw_latencies
from .report import streams_markdown as streams_markdown
