"""What to measure first, so that a band gets narrower, and with which command."""

MEASURED_WITH = {
    "host_memory.": "python -m sim detect --measure",
    "host.peak": "python -m sim detect --measure",
    "pin": "python -m sim detect --measure",
    "network.": "all_reduce_perf of nccl-tests",
    "": "python -m engine calibrate",
}
"""By how a number's name begins: the cheapest command that measures it. Shares of peaks need a model's own kernels."""


def measured_with(name: str) -> str:
    """The command that measures a number."""
    return next(command for begin, command in MEASURED_WITH.items() if name.startswith(begin))
