from .device import DeviceAsked as DeviceAsked
from .generation import (
    Checkpoint as Checkpoint,
    GenerationRequest as GenerationRequest,
    RequestOutput as RequestOutput,
    RunResult as RunResult,
    run as run,
    stream as stream,
)
