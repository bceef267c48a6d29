"""A checkpoint as far as it is read: its configuration and what the headers of its tensors say, never weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sim.problem.widths import Tensor


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model's configuration, with the names and sizes of its tensors where they are there."""

    config: Mapping[str, Any]
    """In the words of a Hugging Face `config.json`."""
    name: str
    source: str
    """What stands first in every error."""
    tensors: tuple[Tensor, ...] = ()
    """Of all its files; none where only the configuration is known."""
    is_gguf: bool = False
