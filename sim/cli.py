"""`python -m sim`."""

from traces.cli import CommandLine

PROGRAM = CommandLine(
    "python -m sim",
    "Predict how an offloaded Mixture-of-Experts model runs, schedule by schedule.",
    {
        "compare": "sim.comparison.command:COMMAND",
        "check": "sim.comparison.check.command:COMMAND",
        "plan": "sim.planning.command:COMMAND",
        "sweep": "sim.sweep.command:COMMAND",
        "roofline": "sim.hrm.command:COMMAND",
        "detect": "sim.problem.machine.detect.command:COMMAND",
        "list": "sim.comparison.command:LISTING",
    },
)
main = PROGRAM.main
