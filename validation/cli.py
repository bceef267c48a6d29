"""`python -m validation`."""

from traces.cli import CommandLine

PROGRAM = CommandLine(
    "python -m validation",
    "Say how far predictions are off, on this machine and on published ones.",
    {
        "replay": "validation.replay.command:COMMAND",
        "campaign": "validation.campaign.command:COMMAND",
        "gpu": "validation.gpu.command:COMMAND",
        "published": "validation.published.command:COMMAND",
        "spreads": "validation.spreads.command:COMMAND",
    },
)
main = PROGRAM.main
