"""Compilation, before anything else and in sight: the first prediction on a machine would take seconds longer."""

from sim.simulation.compiled.event_loop import is_compiled
from sim.simulation.compiled.path import warm_up
from traces.cli import progress


def compile_once() -> None:
    """Compile what predictions need, unless that was done before, and say so on a terminal."""
    if not is_compiled():
        with progress("compiling (once)"):
            warm_up()
