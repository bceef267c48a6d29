"""Programs that XLA has compiled: one for each function and each shape that it was asked for."""

from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp

EXACT = "highest"
"""Precision of products: what a GPU does in 19 bits and a TPU in 16, unless told, is done in all 32."""


class Programs:
    """Runs functions of arrays, compiled before their first run. For the thread of one lane at a time."""

    def __init__(self) -> None:
        self._compiled: dict[Hashable, Any] = {}
        self.temporary_bytes = 0
        """The most that any of them needs on the device beside what it is given and what it gives."""

    def __len__(self) -> int:
        return len(self._compiled)

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
            self._compiled[key] = self._compile(function, arguments, donated)
        return self._compiled[key](*arguments)  # type: ignore[no-any-return]

    def _compile(self, function: Callable[..., Any], arguments: tuple[Any, ...], donated: tuple[int, ...]) -> Any:
        def and_done(*given: Any) -> tuple[Any, jax.Array]:
            return function(*given), jnp.zeros((), jnp.int8)

        with jax.default_matmul_precision(EXACT):
            compiled = jax.jit(and_done, donate_argnums=donated).lower(*arguments).compile()
        analysis = compiled.memory_analysis()
        self.temporary_bytes = max(self.temporary_bytes, getattr(analysis, "temp_size_in_bytes", 0))
        return compiled
