from .ktransformers import expert_server as expert_server
from .launch import Launch as Launch
from .llama_cpp import (
    MOST_SEQUENCES as MOST_SEQUENCES,
    llama_server as llama_server,
    tensors_of as tensors_of,
)
from .served_setup import ServedSetup as ServedSetup, checkpoint_of as checkpoint_of
from .sglang import paging_server as paging_server
from .shell_command import (
    KnownFlags as KnownFlags,
    ShellCommand as ShellCommand,
    known_flags as known_flags,
    name_of_width as name_of_width,
)
from .vllm import (
    groupings as groupings,
    num_layers_on_host as num_layers_on_host,
    prefetching_server as prefetching_server,
    reading_server as reading_server,
)
