from .generation import RunResult as RunResult, run as run
