from .batches import serve_in_batches as serve_in_batches
from .record import (
    NOT_YET as NOT_YET,
    RECORD as RECORD,
    REQUESTS as REQUESTS,
    ServedRequest as ServedRequest,
    ServedStep as ServedStep,
    StreamRecord as StreamRecord,
)
from .recording import (
    RECORDED_STREAM_STEPS as RECORDED_STREAM_STEPS,
    ServedCosts as ServedCosts,
    record_stream as record_stream,
    simulate_stretches as simulate_stretches,
    stream_tasks as stream_tasks,
    stretches as stretches,
)
from .results import (
    STREAM_MEASURES as STREAM_MEASURES,
    Quantiles as Quantiles,
    RequestTimes as RequestTimes,
    StreamResult as StreamResult,
)
from .serving import StreamRun as StreamRun, serve_stream as serve_stream
from .setup import StreamRoomError as StreamRoomError, StreamSetup as StreamSetup
from .steps import Behind as Behind, StepTimes as StepTimes, WorkCosts as WorkCosts
