"""The execution: the schedules of `sim` driving PyTorch."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.generation.generate import RunResult, run

__all__ = ["RunResult", "run"]


def __getattr__(name: str) -> object:
    """Imports torch and transformers when the engine is first used, not before."""
    if name not in __all__:
        raise AttributeError(f"module 'engine' has no attribute {name!r}")
    from engine.generation import generate

    return getattr(generate, name)
