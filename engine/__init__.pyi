from .generation import (
    GenerationRequest as GenerationRequest,
    RequestOutput as RequestOutput,
    RunResult as RunResult,
    run as run,
    stream as stream,
)
