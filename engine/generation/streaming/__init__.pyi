from .call import joins_of as joins_of, stream as stream
from .outputs import OutputStream as OutputStream
from .stats import StreamStats as StreamStats
from .wanted import RequestOutput as RequestOutput, most_held as most_held
