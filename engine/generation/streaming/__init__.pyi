from .call import stream as stream
from .outputs import OutputStream as OutputStream
from .stats import StreamStats as StreamStats
from .wanted import RequestOutput as RequestOutput
