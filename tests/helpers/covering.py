"""Few of all combinations for the usual run, the rest for `pytest -m exhaustive`."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest


def covering(*axes: Sequence[Any]) -> list[Any]:
    """All combinations of the axes' values, of which the usual run gets each value of each axis at least once.

    It takes as many as the longest axis has values, and deals those of the others out in turn.
    """
    usual = {tuple(i % len(axis) for axis in axes) for i in range(max(map(len, axes)))}
    every = product(*(range(len(axis)) for axis in axes))
    return [
        pytest.param(*(axis[i] for axis, i in zip(axes, at, strict=True)), marks=_marks(at in usual)) for at in every
    ]


def few_of(cases: Sequence[Sequence[Any]], every: int) -> list[Any]:
    """All cases, of which the usual run gets the first and each so-many-th after it."""
    return [pytest.param(*case, marks=_marks(at % every == 0)) for at, case in enumerate(cases)]


def _marks(usual: bool) -> Sequence[pytest.MarkDecorator]:
    return () if usual else (pytest.mark.exhaustive,)
