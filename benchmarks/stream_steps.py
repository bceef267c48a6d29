"""Steps of a stream a second: what they carry, what they cost, and how long they take, with SimPy and compiled.

    python benchmarks/stream_steps.py [--steps 60] [--schedule cgopipe] [--json FILE]

MoE-Lightning's S1 with lognormal lengths, so that no two steps are alike. All steps are those of one run, from the
first on that has most places taken; each way simulates the same ones in this process, and says the same of them.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

from sim.admission import Admission, Composition, Lengths, RequestStream
from sim.planning import Flow, best_stream_policy
from sim.problem import Problem
from sim.schedule import by_name
from sim.simulation import StepTimes, StreamSetup, warm_up

REQUESTS = 4000
SMALLER = 10
"""SimPy has a tenth of the steps: it takes long."""


def compositions(setup: StreamSetup, stream: RequestStream, count: int) -> tuple[list[Composition], float]:
    """Steps behind those in which requests only come, and seconds of admission for each step."""
    admission, has, ended, found = Admission(setup.rules()), {}, [], []
    for request in stream.requests:
        admission.arrive(request)
    started, steps, gone = time.process_time(), 0, False
    while len(found) <= count:
        one = admission.step(ended)
        steps += 1
        for id_ in one.gives_tokens_to:
            has[id_] = has.get(id_, 0) + 1
        ended = [id_ for id_ in one.gives_tokens_to if has[id_] == stream.requests[id_].generated_tokens]
        gone = gone or admission.num_running >= 0.9 * admission.rules.most_running
        if gone:
            found.append(one)
    return found, (time.process_time() - started) / steps


def spans(times: StepTimes, steps: Sequence[Composition]) -> list[int]:
    return [times.span_ns(before, now) for before, now in pairwise(steps)]


def timed(run: Callable[[], list[int]]) -> tuple[list[int], float]:
    started = time.process_time()
    found = run()
    return found, (time.process_time() - started) / len(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--schedule", default="cgopipe")
    parser.add_argument("--json")
    args = parser.parse_args()
    problem, schedule = Problem.of("mixtral-8x7b", "gcp-t4", gen_len=128), by_name(args.schedule)
    stream = RequestStream.of(problem.workload, REQUESTS, lengths=Lengths.parse("lognormal:60,0.8"))
    setup = best_stream_policy(problem, schedule, Flow.of(stream)).ranked[0].setup
    warm_up()
    steps, admission_s = compositions(setup, stream, args.steps)
    few = steps[: 1 + max(1, args.steps // SMALLER)]
    fast, slow = StepTimes(setup), StepTimes(setup, compiled=False)
    fast.span_ns(None, steps[0])  # the program of this shape
    (compiled, compiled_s), (simpy, simpy_s) = timed(lambda: spans(fast, steps)), timed(lambda: spans(slow, few))
    result = {
        "schedule": args.schedule,
        "policy": setup.policy.to_dict(),
        "steps": len(compiled),
        "equal": compiled[: len(simpy)] == simpy,
        "admission_s": admission_s,
        "compiled_s": compiled_s,
        "simpy_s": simpy_s,
    }
    known = f"{len(compiled)} steps, equal: {result['equal']}; Python {platform.python_version()}"
    ratio = f"{simpy_s / compiled_s:.0f} times as fast"
    print(f"{args.schedule} {setup.policy}, {known}")
    print(f"  admission {1e3 * admission_s:.2f} ms a step")
    print(f"  SimPy     {1e3 * simpy_s:.2f} ms, {1 / simpy_s:,.0f} steps/s")
    print(f"  compiled  {1e3 * compiled_s:.2f} ms, {1 / compiled_s:,.0f} steps/s, {ratio}")
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
