from .accelerator import Accelerator as Accelerator
from .runtime import Event as Event, MemoryState as MemoryState, Runtime as Runtime, Stream as Stream
from .torch_runtime import TorchRuntime as TorchRuntime, runtime_of as runtime_of
