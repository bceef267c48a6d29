"""Compiles functions over arrays with numba where it is installed; without it they run as they are, far slower.

Import this only where the jitted functions are needed: numba takes a third of a second to import.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., Any])

try:
    from numba import njit
except ImportError:
    COMPILES = False
else:
    COMPILES = True


def jitted(function: Function, **options: Any) -> Function:
    """The function compiled at its first call, or taken from an earlier process if there is a place to keep it.

    `options` are further ones of numba's.
    """
    if not COMPILES:
        return function
    try:
        return cast(Function, njit(cache=True, nogil=True, **options)(function))
    except RuntimeError:  # no folder for the cache can be written to
        return cast(Function, njit(nogil=True, **options)(function))
