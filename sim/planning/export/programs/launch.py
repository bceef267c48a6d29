"""How a plan is run by another program: commands, and what has to be said beside them."""

from dataclasses import dataclass

from sim.planning.export.programs.shell_command import ShellCommand


@dataclass(frozen=True, slots=True)
class Launch:
    """What a program is told."""

    serve: ShellCommand
    """Starts it as a server."""
    measure: ShellCommand | None = None
    """Measures the same setting, where the program brings what does."""
    notes: tuple[str, ...] = ()
    """What the command line cannot say as the plan has it, a sentence each."""


def cache_differs(name: str, bits: float, planned_bits: float) -> str:
    """That a program's KV cache is not as wide as the plan's."""
    return f"The KV cache is {name} of {bits:g} bits a number, the plan's has {planned_bits:g}"
