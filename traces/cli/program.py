"""`python -m traces`."""

from traces.cli.frame import Program

PROGRAM = Program(
    "python -m traces",
    "Read the trace of a run, simulated or real, or a PyTorch profile of the engine.",
    {
        "summary": "traces.cli.commands:SUMMARY",
        "critical-path": "traces.cli.commands:CRITICAL_PATH",
        "diff": "traces.cli.commands:DIFF",
    },
)
main = PROGRAM.main
