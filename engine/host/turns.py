"""Pieces of work that threads take turns at inside compiled code, without a word to Python.

A thread that goes back to Python for its next piece waits for Python's lock: with 16 threads on a server, two
milliseconds a layer, three times what its experts take. Here the next piece is an atomic addition.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numba import njit, types
from numba.core import cgutils

from engine.host.bits import Array
from engine.host.vectors import typed_intrinsic

_PHASE: Final = 32
"""Numbers of a phase: three cache lines, so that who takes a piece does not hold up who says that one is done."""
_NEXT, _DONE, _ITEMS, _SIZE = 0, 8, 16, 17
_LOOKS: Final = 200_000
"""How often a thread looks whether the others are done before it lets go: some 100 µs."""


def turns_at(phases: Sequence[int], pieces: int) -> Array:
    """A table of `phases`, of so many items each, which are done one phase after the other in about `pieces` pieces."""
    turns = np.zeros(_PHASE * len(phases), np.int64)
    for phase, items in enumerate(phases):
        turns[_PHASE * phase + _ITEMS], turns[_PHASE * phase + _SIZE] = items, max(1, -(-items // pieces))
    return turns


@typed_intrinsic
def _added(typing: Any, turns: types.Array, at: types.Integer, amount: types.Integer) -> Any:
    """Adds to a number at once for all threads, and gives what it was."""

    def code(context: Any, b: Any, signature: Any, given: Any) -> Any:
        array = cgutils.create_struct_proxy(signature.args[0])(context, b, given[0])  # type: ignore[no-untyped-call]
        where = b.gep(array.data, [given[1]])
        return b.atomic_rmw("add", where, given[2], "seq_cst")

    return types.int64(turns, types.int64, types.int64), code


@typed_intrinsic
def _seen(typing: Any, turns: types.Array, at: types.Integer) -> Any:
    """What a number is now, whichever thread wrote it."""

    def code(context: Any, b: Any, signature: Any, given: Any) -> Any:
        array = cgutils.create_struct_proxy(signature.args[0])(context, b, given[0])  # type: ignore[no-untyped-call]
        return b.load_atomic(b.gep(array.data, [given[1]]), "seq_cst", 8)

    return types.int64(turns, types.int64), code


def _compiled(function: Callable[..., Any]) -> Any:
    return njit(nogil=True)(function)


@_compiled
def next_piece(turns: Array, phase: int) -> Any:
    """The first item of the next piece and the one behind its last; two equal ones if there is none left."""
    at = _PHASE * phase
    items, size = turns[at + _ITEMS], turns[at + _SIZE]
    first = _added(turns, at + _NEXT, size)
    return min(first, items), min(first + size, items)


@_compiled
def piece_done(turns: Array, phase: int, first: int, last: int) -> None:
    """Items `first` to `last` - 1 are done."""
    _added(turns, _PHASE * phase + _DONE, last - first)


@_compiled
def all_done(turns: Array, phase: int) -> bool:
    """Whether all threads have done all pieces of a phase; waits a little for those that are at work."""
    at = _PHASE * phase
    for _ in range(_LOOKS):  # noqa: SIM110 - numba compiles no generator
        if _seen(turns, at + _DONE) >= turns[at + _ITEMS]:
            return True
    return False
