"""How fast the simulator is, beside a bare SimPy loop on the same task list, in pairs within one run.

    python benchmarks/simulator.py [--repeats 7] [--json FILE]

The bare loop is the least that SimPy can do for the same result: one process per lane that waits for the dependencies
and then for the duration. It shares no bandwidth, keeps no account of who waited for what, and looks up no cost.
`simulator` runs the same list with everything on; `with generation` also makes the tasks and computes their costs.
"""

import argparse
import gc
import json
import platform
import statistics
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import simpy

from sim.cost import Cost, Setup
from sim.problem import Hardware, Model, Policy, Problem, Workload
from sim.schedule import Lane, Task, by_name
from sim.simulation import Simulation

STEPS = 40


def setup_of(schedule: str) -> Setup:
    problem = Problem(
        Model.load("mixtral-8x7b"), Hardware.load("gcp-t4"), Workload.load("mtbench").with_(gen_len=128, padded=True)
    )
    return Setup(problem, by_name(schedule), Policy.usual(by_name(schedule), 504, 36))


def bare_loop(tasks: list[Task], costs: dict[int, Cost]) -> int:
    """One SimPy process per lane and nothing else; returns the makespan in nanoseconds."""
    env = simpy.Environment()
    queues: dict[Lane, list[Task]] = {}
    for task in tasks:
        queues.setdefault(task.lane, []).append(task)
    ended: set[int] = set()
    awaited: dict[int, simpy.Event] = {}

    def walk(queue):
        for task in queue:
            for dep in task.deps:
                if dep not in ended:
                    if dep not in awaited:
                        awaited[dep] = env.event()
                    yield awaited[dep]
            yield env.timeout(costs[task.id].duration_ns)
            ended.add(task.id)
            if task.id in awaited:
                awaited.pop(task.id).succeed()

    for queue in queues.values():
        env.process(walk(queue))
    env.run()
    return env.now


def timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def measure(schedule: str, repeats: int) -> dict[str, object]:
    setup = setup_of(schedule)
    cost_model = setup.costs(only_contended=True)
    steps = list(setup.schedule.steps(setup.shape, 0, STEPS, last=127))
    tasks = [task for step in steps for task in step]
    costs = {task.id: cost_model(task) for task in tasks}
    by_task = lambda task: costs[task.id]  # noqa: E731
    unshared = [10**18] * len(cost_model.capacities)
    runs: dict[str, Callable[[], object]] = {
        "bare loop": lambda: bare_loop(tasks, costs),
        "simulator, nothing contended": lambda: Simulation(steps, by_task, unshared).run(),
        "simulator": lambda: Simulation(steps, by_task, cost_model.capacities).run(),
        "with generation and costs": lambda: Simulation(
            setup.schedule.steps(setup.shape, 0, STEPS, last=127),
            setup.costs(only_contended=True),
            cost_model.capacities,
        ).run(),
    }
    gc.collect()
    gc.freeze()  # the stored list is there for the comparison only: its objects should not slow collections down
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            seconds[name].append(timed(run))
    ratios = {
        name: sorted(one / bare for one, bare in zip(seconds[name], seconds["bare loop"], strict=True)) for name in runs
    }
    return {
        "schedule": schedule,
        "tasks": len(tasks),
        "tasks_per_s": {name: sorted(len(tasks) / one for one in all_) for name, all_ in seconds.items()},
        "time_over_bare": ratios,
    }


def peak_bytes(num_steps: int) -> int:
    """Most memory that Python held while it simulated so many steps, templates made before."""
    setup = setup_of("cgopipe")
    cost_model = setup.costs(only_contended=True)
    list(setup.schedule.steps(setup.shape, 0, 5, last=num_steps))
    tracemalloc.start()
    Simulation(setup.schedule.steps(setup.shape, 0, num_steps, last=num_steps), cost_model, cost_model.capacities).run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--schedules", default="cgopipe,flexgen")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    print(f"Python {platform.python_version()}, simpy {simpy.__version__}, {platform.machine()}; median (min to max)")
    results = [measure(name, args.repeats) for name in args.schedules.split(",")]
    for result in results:
        print(f"\n{result['schedule']}: {result['tasks']:,} tasks, {args.repeats} repeats")
        for name, rates in result["tasks_per_s"].items():
            ratios = result["time_over_bare"][name]
            print(
                f"  {name:30} {statistics.median(rates):>10,.0f} tasks/s ({rates[0]:,.0f} to {rates[-1]:,.0f})"
                f"   time over bare loop {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            )
    memory = {steps: peak_bytes(steps) for steps in (20, 200)}
    print("\npeak memory: " + ", ".join(f"{steps} steps {peak / 1e6:.2f} MB" for steps, peak in memory.items()))
    if args.json:
        Path(args.json).write_text(json.dumps({"results": results, "peak_bytes": memory}, indent=2) + "\n")


if __name__ == "__main__":
    main()
