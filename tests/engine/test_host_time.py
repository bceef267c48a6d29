"""What a trace says of the host's share in decode."""

import time

import pytest
from engine_models import PROMPTS, make

import engine
from engine.tasks.host import HostTime, clocks_ns, host_time
from sim.problem import Policy
from sim.schedule import GPU, Op, Task


def task(op, step):
    return Task(0, op, GPU, step, 0, 0)


def test_a_trace_says_what_a_turn_takes_the_host():
    result = engine.run(make("mixtral"), PROMPTS, policy=Policy(7, 2), max_new_tokens=4)
    host, spans = result.trace.metadata["host"], result.trace.spans
    decode = [span for span in spans if span.lane == "GPU" and span.step > 0]
    assert host["turns"] == sum(span.op == "PostAttn" for span in decode) == 3 * 3 * 4
    assert host["cpu_s_per_turn"] > 0
    assert host["s_per_turn"] * host["turns"] <= sum(span.duration_ns for span in decode) / 1e9
    assert host["waits_for_experts_per_turn"] == 0


@pytest.mark.parametrize(("share", "waits"), [(0.0, 2), (0.5, 4), (1.0, 2)])
def test_each_part_of_the_experts_may_wait(share, waits, monkeypatch):
    monkeypatch.setattr("engine.generation.trace.host_waits", lambda device, dtype: 2)
    policy = Policy(7, 2, experts_on_device=share)
    trace = engine.run(make("mixtral"), PROMPTS, policy=policy, max_new_tokens=2).trace
    assert trace.metadata["host"]["waits_for_experts_per_turn"] == waits


def test_only_decode_counts_and_waiting_is_no_work(monkeypatch):
    host = HostTime()
    host.add(task(Op.POST_ATTN, 0), clocks_ns())
    assert host == HostTime()
    monkeypatch.setattr(host_time, "clocks_ns", lambda: (5_000, 300))
    for op in (Op.PRE_ATTN, Op.POST_ATTN, Op.HEAD):
        host.add(task(op, 1), (1_000, 100))
    assert host.to_dict() == {"turns": 1, "cpu_s_per_turn": 600e-9, "s_per_turn": 12e-6}


def test_a_sleeping_thread_works_nothing():
    before = clocks_ns()
    time.sleep(0.02)
    elapsed_ns, cpu_ns = (now - then for now, then in zip(clocks_ns(), before, strict=True))
    assert cpu_ns < elapsed_ns
