"""`python -m engine`."""

from traces.cli import CommandLine

PROGRAM = CommandLine(
    "python -m engine",
    "Run an offloaded Mixture-of-Experts model by a schedule.",
    {
        "run": "engine.running.command:COMMAND",
        "calibrate": "engine.calibration.command:COMMAND",
        "demo": "engine.running.demo:DEMO",
        "jax": "engine.running.xla.command:COMMAND",
    },
)
main = PROGRAM.main
