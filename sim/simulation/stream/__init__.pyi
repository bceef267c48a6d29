from .results import Quantiles as Quantiles, RequestTimes as RequestTimes, StreamResult as StreamResult
from .serving import serve_stream as serve_stream
from .setup import StreamSetup as StreamSetup
from .steps import StepTimes as StepTimes
