"""What `plan --export` tells a person."""

from sim.planning.export.exported import Exported
from traces.cli import PROSE, TEXT, Report

COMMAND_WIDTH = 100


def print_exported(found: Exported) -> None:
    """Print the command, what its setting is predicted to reach, and what the program does otherwise."""
    out, best = Report(), found.best
    out.say(
        f"For [bold]{found.target}[/bold], options as of {found.version}: "
        f"[bold]{best.throughput_tokens_per_s:,.2f} tokens/s[/bold] predicted of what it can do, "
        f"{found.of_plan:.0%} of the plan (simulated as {best.schedule}; the program itself was not run)."
    )
    out.quote(found.launch.serve.lines(COMMAND_WIDTH))
    if found.launch.measure is not None:
        out.say("To measure the same:")
        out.quote(found.launch.measure.lines(COMMAND_WIDTH))
    if found.differences:
        rows = ((one.matter, one.plan, one.there) for one in found.differences)
        out.table({"": TEXT, "the plan": PROSE, found.target: PROSE}, rows, f"what {found.target} does otherwise")
    else:
        out.say(f"{found.target} can do all that the plan says.")
    out.say(*(f"{note}." for note in found.launch.notes))
