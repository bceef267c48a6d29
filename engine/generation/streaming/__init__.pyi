from .call import stream as stream
from .serving import OutputStream as OutputStream, StreamStats as StreamStats
from .wanted import GenerationRequest as GenerationRequest, RequestOutput as RequestOutput
