from .batches import serve_in_batches as serve_in_batches
from .results import (
    STREAM_MEASURES as STREAM_MEASURES,
    Quantiles as Quantiles,
    RequestTimes as RequestTimes,
    StreamResult as StreamResult,
)
from .serving import serve_stream as serve_stream
from .setup import StreamSetup as StreamSetup
from .steps import Behind as Behind, StepTimes as StepTimes, WorkCosts as WorkCosts
