from .batch import BatchResult as BatchResult, BatchRun as BatchRun, GenerationOptions as GenerationOptions
