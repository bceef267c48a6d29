"""What benchmarks share whose candidates take turns, so that what else the machine does falls on all of them alike."""

import contextlib
import json
import os
import platform
import statistics
import time
from pathlib import Path

import numba
import torch

GIGA = 1e9


def options_of(parser):
    """The parser's options, and those that all such benchmarks have."""
    parser.add_argument("--threads", type=int, nargs="*", default=sorted({1, os.cpu_count() or 1}))
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--cpu-time", action="store_true", help="count CPU time: where others use the processor too")
    parser.add_argument("--output", type=Path, help="all quartiles as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)  # helpers of torch spin beside ours
    return options


def setting_of(options):
    """Under what was measured: the options, but for where results go."""
    return {name: value for name, value in vars(options).items() if name != "output"}


def begin(options, shares):
    """Say what is measured where, and of what `shares` are."""
    print(f"{setting_of(options)}\n{machine_facts()}")
    print(f"median (middle half); shares of {shares} in the same turn\n")


def keep(options, rows):
    """Write all rows where the options want them."""
    if options.output:
        result = {"setting": setting_of(options), "machine": machine_facts(), "rows": rows}
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def seconds(work, threads, cpu_time):
    """How long `work` takes; as CPU time, what its threads used divided by their number."""
    clock = time.process_time if cpu_time else time.perf_counter
    start_s = clock()
    work()
    return (clock() - start_s) / (threads if cpu_time else 1)


def quartiles(numbers):
    return [round(number, 4) for number in statistics.quantiles(numbers, n=4)]


def spread(found, digits=2):
    """Median, and the range that holds the middle half."""
    low, middle, high = found
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def machine_facts():
    found = {"machine": platform.machine(), "system": platform.system(), "cores": os.cpu_count()}
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        found["processor"] = next(line.split(": ")[1] for line in lines if line.startswith("model name"))
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numba": numba.__version__}
    return found | versions
