"""Programs that XLA has compiled: one for each function and each shape that it was asked for."""

from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp

EXACT = "highest"
"""Precision of products: what a GPU does in 19 bits and a TPU in 16, unless told, is done in all 32."""


class Programs:
    """Runs functions of arrays, compiled before their first run. For one thread at a time."""

    def __init__(self) -> None:
        self._compiled: dict[Hashable, Any] = {}
        self._temporary_bytes: dict[Hashable, int] = {}
        self._used: set[Hashable] = set()

    def start_count(self) -> None:
        """From now on counts what is used."""
        self._used.clear()

    @property
    def num_used(self) -> int:
        """How many programs ran since then."""
        return len(self._used)

    @property
    def temporary_bytes(self) -> int:
        """The most that one of these needs on the device beside what it is given and what it gives, as XLA says."""
        return max((self._temporary_bytes[key] for key in self._used), default=0)

    def __call__(
        self, name: Hashable, function: Callable[..., Any], *arguments: Any, donated: tuple[int, ...] = ()
    ) -> tuple[Any, jax.Array]:
        """What a function gives, and an array that is there when all of it is, which nobody overwrites.

        `name` stands for the function and all that it knows beside its arguments. Of `donated` arguments the memory
        goes to results of their shape.
        """
        leaves, structure = jax.tree.flatten(arguments)
        key = name, structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        if key not in self._compiled:
            self._compiled[key] = self._compile(key, function, arguments, donated)
        self._used.add(key)
        made: tuple[Any, jax.Array] = self._compiled[key](*arguments)
        return made

    def _compile(
        self, key: Hashable, function: Callable[..., Any], arguments: tuple[Any, ...], donated: tuple[int, ...]
    ) -> Any:
        def and_done(*given: Any) -> tuple[Any, jax.Array]:
            return function(*given), jnp.zeros((), jnp.int8)

        with jax.default_matmul_precision(EXACT):
            compiled = jax.jit(and_done, donate_argnums=donated).lower(*arguments).compile()
        self._temporary_bytes[key] = getattr(compiled.memory_analysis(), "temp_size_in_bytes", 0)
        return compiled
