from .device import DeviceAsked as DeviceAsked
from .generation import (
    GenerationRequest as GenerationRequest,
    ModelAsked as ModelAsked,
    RequestOutput as RequestOutput,
    RunResult as RunResult,
    run as run,
    stream as stream,
)
