"""The fast path beside the SimPy path on the same work: from a setup to seconds, steps sampled and interpolated.

    python benchmarks/fast_path.py [--repeats 7] [--json FILE]

Both paths begin with a setup, that is with a schedule and what a cost model is made of, and end with the seconds of the
whole generation. `known shape`: the tasks of this pipeline were made before. `new shape`: they are made anew, as for
the first policy with so many micro-batches. Times are seconds of this process's processor, and a ratio is taken within
each repeat, because other work on a machine slows both paths down.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from sim.cost import Setup
from sim.problem import Hardware, Model, Policy, Problem, Workload
from sim.schedule import base, by_name
from sim.simulation import Prediction, predict, warm_up
from sim.simulation.compiled import (
    cost_table as fastpath_costs,
    event_loop as fastpath_kernel,
    program as fastpath_program,
)
from sim.simulation.compiled.jit import COMPILES

MANY_SIZES, MANY_COUNTS = range(4, 40, 4), range(2, 30, 3)


def setup_of(schedule: str, size: int, count: int, model: str = "mixtral-8x7b", machine: str = "gcp-t4", **slower):
    hardware = Hardware.load(machine)
    for path, value in slower.items():
        hardware = hardware.with_value(path.replace("__", "."), value)
    problem = Problem(Model.load(model), hardware, Workload.load("mtbench").with_(gen_len=128, padded=True))
    return Setup(problem, by_name(schedule), Policy.usual(by_name(schedule), size * count, size))


def cases() -> dict[str, Setup]:
    """Mixtral 8x7B on a T4 (S1 of the paper), a machine whose DRAM is always exceeded, and 8x22B on two T4."""
    contended = {"host_memory__bandwidth": 25e9, "link__duplex": 14e9}
    return {
        "cgopipe 36x14": setup_of("cgopipe", 36, 14),
        "flexgen 8x139": setup_of("flexgen", 8, 139),
        "zero 32x1": setup_of("zero", 32, 1),
        "cgopipe 36x14, slow DRAM": setup_of("cgopipe", 36, 14, **contended),
        "cgopipe 36x14, 2 ranks": setup_of("cgopipe", 36, 14, "mixtral-8x22b", "gcp-2xt4"),
    }


def forget_shapes() -> None:
    for cached in (
        base.layout_of,
        base._start,
        base._steady,
        fastpath_program._program,
        fastpath_program._alike,
        fastpath_costs.task_kinds,
    ):
        cached.cache_clear()


def timed(run: Callable[[], object]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


fast = partial(predict, compiled=True)


def kernel_share(setup: Setup) -> float:
    """Share of a question about a known shape that the event loop takes: all that skipping equal layers could save."""
    inside, run = 0.0, fastpath_kernel._run

    def watched(*args):
        nonlocal inside
        started = time.process_time()
        left = run(*args)
        inside += time.process_time() - started
        return left

    fastpath_kernel._run = watched
    try:
        whole = timed(lambda: [fast(setup) for _ in range(20)])
    finally:
        fastpath_kernel._run = run
    return inside / whole


def measure(setup: Setup, repeats: int) -> dict[str, object]:
    found, truth = fast(setup), predict(setup)
    seconds: dict[str, dict[str, list[float]]] = {
        shape: {"SimPy path": [], "fast path": []} for shape in ("known shape", "new shape")
    }
    for _ in range(repeats):
        for shape, of in seconds.items():
            for name, path in (("SimPy path", predict), ("fast path", fast)):
                if shape == "new shape":
                    forget_shapes()
                of[name].append(timed(lambda path=path: path(setup)))
    return {
        "tasks": found.simulated_tasks,
        "equal": same(found, truth),
        "kernel_share": kernel_share(setup),
        "seconds": seconds,
        "times_faster": {
            shape: sorted(simpy / fast for simpy, fast in zip(of["SimPy path"], of["fast path"], strict=True))
            for shape, of in seconds.items()
        },
    }


def same(ours: Prediction, theirs: Prediction) -> bool:
    """Whether both paths say the same to the last digit."""
    return (ours.prefill_s, ours.decode_s) == (theirs.prefill_s, theirs.decode_s)


def setups_per_s(repeats: int) -> list[float]:
    """Questions about many policies of S1, with making the setups and the shapes, on one core."""
    problem, schedule = setup_of("cgopipe", 36, 14).problem, by_name("cgopipe")
    policies = [Policy.usual(schedule, size * count, size) for count in MANY_COUNTS for size in MANY_SIZES]
    rates = []
    for _ in range(repeats):
        forget_shapes()
        rates.append(len(policies) / timed(lambda: [fast(Setup(problem, schedule, one)) for one in policies]))
    return sorted(rates)


def first_use() -> dict[str, float]:
    """Processor seconds of a new process until the first answer can come: with nothing compiled before, and with it."""
    code = "import time; from sim.simulation import warm_up; warm_up(); print(time.process_time())"
    with tempfile.TemporaryDirectory() as cache:
        runs = [
            subprocess.run(
                [sys.executable, "-c", code],
                env={**os.environ, "NUMBA_CACHE_DIR": cache},
                check=True,
                capture_output=True,
                text=True,
            )
            for _ in range(2)
        ]
    return {"nothing compiled": float(runs[0].stdout), "compiled before": float(runs[1].stdout)}


def spread(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    compiled = "compiled with numba" if COMPILES else "plain Python, numba is not installed"
    print(f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores; fast path {compiled}")
    started = first_use()
    print("processor seconds to the first answer: " + ", ".join(f"{name} {s:.2f}" for name, s in started.items()))
    warm_up()
    results = {}
    for name, setup in cases().items():
        result = results[name] = measure(setup, args.repeats)
        print(f"\n{name}: {result['tasks']:,} tasks, {args.repeats} repeats", end="")
        print(f", equal: {result['equal']}, event loop {result['kernel_share']:.0%} of a known shape")
        for shape, of in result["seconds"].items():
            for path, seconds in of.items():
                rates = [result["tasks"] / one for one in seconds]
                print(f"  {shape:12} {path:10} {spread([1e3 * s for s in seconds], '8.2f')} ms", end="")
                print(f"   {spread(rates, '12,.0f')} tasks/s")
            print(f"  {shape:12} times faster {spread(result['times_faster'][shape], '.0f')}")
    many = setups_per_s(args.repeats)
    print(
        f"\n{len(MANY_SIZES) * len(MANY_COUNTS)} policies of {len(MANY_COUNTS)} shapes: {spread(many, '.0f')} setups/s"
    )
    if args.json:
        told = {"results": results, "setups_per_s": many, "first_use_s": started}
        Path(args.json).write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
