"""The host's kernels as they are for processors with other vector registers than this one has."""

import importlib.util
import sys

import pytest
from llvmlite import binding
from numba import njit

import sim.simulation

SMALLEST = {"sse2": True}
"""The shortest vectors in the fewest registers: what is compiled soonest, and differs most from a new processor's."""

OTHER_PROCESSORS = [
    pytest.param(SMALLEST, id="sse2"),
    pytest.param({"sse2": True, "avx": True}, id="avx", marks=pytest.mark.exhaustive),
    pytest.param({"neon": True}, id="neon", marks=pytest.mark.exhaustive),
]
"""By the features that a processor says it has."""


def made_for(features, modules, monkeypatch):
    """These modules made anew in their order, as on such a processor; nothing that they compile is kept."""
    monkeypatch.setattr(binding, "get_host_cpu_features", lambda: features)
    monkeypatch.setattr(sim.simulation, "jitted", lambda function, **options: njit(nogil=True, **options)(function))
    found = []
    for module in modules:
        made = importlib.util.module_from_spec(importlib.util.find_spec(module.__name__))
        monkeypatch.setitem(sys.modules, module.__name__, made)
        made.__spec__.loader.exec_module(made)
        found.append(made)
    return found
