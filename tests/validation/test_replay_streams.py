"""Replay of streams: simulated ones to the nanosecond, the engine's with the same decisions, and what is refused."""

import json
from dataclasses import replace
from functools import cache

import msgspec
import pytest
from engine_models import PROMPTS, make
from schemas import faults
from sim_examples import few_layers, round_machine

import engine
from engine.device import EmulatedDevice
from sim.admission import Arrivals, Joins, Lengths, RequestStream
from sim.problem import Policy, Problem, Workload
from sim.problem.presets import MODELS
from sim.schedule import by_name
from sim.simulation import StreamRecord, StreamSetup, record_stream
from traces.errors import InputError
from traces.files import read_trace, write_trace
from traces.trace import Trace
from validation.replay import replay_trace

MODEL = "mixtral-8x7b"
WORKLOAD = Workload("short", (30, 70), 6)
MACHINE = round_machine(host_memory__bandwidth=15e9)
ALL = 1_000


@cache
def simulated(schedule="cgopipe", joins=Joins.ANY_TIME, arrivals="at-once", num_steps=ALL):
    """Two layers of Mixtral on a machine whose DRAM is so slow that lanes slow each other down."""
    plan = by_name(schedule)
    problem = Problem(few_layers(MODEL, 2), MACHINE, WORKLOAD)
    stream = RequestStream.of(
        WORKLOAD, 16, lengths=Lengths.parse("lognormal:4,0.6"), arrivals=Arrivals.parse(arrivals), seed=2
    )
    usual = StreamSetup(problem, plan, Policy.usual(plan, 8, 4), 300)
    rules = replace(usual.rules(), joins=joins)
    config = {**json.loads(MODELS.path(MODEL).read_text(encoding="utf-8")), "num_hidden_layers": 2}
    return record_stream(usual, stream, rules, {"model_config": config}, num_steps)


def changed(trace, **stream):
    """The trace with other values in what it says of its stream."""
    return Trace({**trace.metadata, "stream": {**trace.metadata["stream"], **stream}}, trace.spans, trace.counters)


@pytest.mark.parametrize("joins", Joins)
@pytest.mark.parametrize("arrivals", ["at-once", "poisson:0.1/s"])
@pytest.mark.parametrize("schedule", ["cgopipe", "hybrid"])
def test_a_simulated_stream_is_replayed_to_the_nanosecond(schedule, joins, arrivals):
    trace = simulated(schedule, joins, arrivals)
    result = replay_trace(trace, MACHINE)
    waits = [step.waited_ns for step in result.run.record.steps[1:] if step.waited_ns]
    assert bool(waits) == (arrivals != "at-once"), "with arrivals nobody is there for a while"
    assert {s.key: (s.start_ns, s.end_ns) for s in result.replayed.spans} == {
        s.key: (s.start_ns, s.end_ns) for s in trace.spans
    }
    assert (result.order_check.error, result.order_check.error_with_dispatch, result.order_check.absent) == (0, 0, 0)
    assert (result.duration_check.wape, result.run_check.run.error, result.run_check.throughput_error) == (0, 0, 0)
    assert (result.run_check.prefill, result.run_check.decode) == (None, None), "it has no phases"
    checked = result.stream_check
    assert (checked.steps_alike, checked.different) == (checked.steps, "")
    assert [(one.measure, one.quantile, one.error) for one in checked.latencies] == [
        (measure, quantile, 0) for measure in ("TTFT", "TPOT", "E2E") for quantile in ("p50", "p90")
    ]


def test_prompts_and_those_who_decode_are_told_apart():
    ops = replay_trace(simulated(), MACHINE).duration_check.ops
    assert {one.phase for one in ops if one.op == "PostAttn"} == {"prefill", "decode"}
    assert any(one.solo_bias < -0.01 for one in ops), "some tasks slow each other down"


def test_a_part_of_a_stream_is_replayed_as_a_part():
    result = replay_trace(simulated(num_steps=7), MACHINE)
    assert (result.order_check.error, result.run_check.run.error) == (0, 0)
    assert (result.stream_check.steps, result.stream_check.steps_alike) == (7, 7)
    assert result.run_check.run.measured_tokens_per_s > 0


def test_a_machine_twice_as_fast_is_seen():
    fast = MACHINE.with_value("link.h2d", 20e9).with_value("pin", 10e9)
    result = replay_trace(simulated(), fast)
    assert result.run_check.run.error < -0.1
    assert all(one.error < -0.1 for one in result.stream_check.latencies)


def test_a_step_that_the_rules_would_not_have_made_is_named():
    """The same requests with a place less."""
    trace = simulated()
    steps = [dict(one) for one in trace.metadata["stream"]["steps"]]
    whole = steps[1]["composition"]
    fewer = [chunks[1:] for chunks in whole["prompts"]]
    steps[1] = {**steps[1], "composition": {**whole, "prompts": fewer, "entered": whole["entered"][1:]}}
    checked = replay_trace(changed(trace, steps=steps)).stream_check
    assert checked.steps_alike == 1
    assert checked.different.startswith("step 1 carried prompts of")


@pytest.mark.parametrize(
    ("stream", "said"),
    [
        ({"steps": []}, "no step or no request"),
        ({"requests": []}, "no step or no request"),
        ({"rules": None}, "cannot be used"),
        ({"requests": [{"request": {"id": 0}}]}, "cannot be used"),
    ],
)
def test_streams_that_do_not_tell_enough_are_refused(stream, said):
    with pytest.raises(InputError, match=said):
        replay_trace(changed(simulated(), **stream))


def test_rules_of_other_sizes_than_the_steps_are_refused():
    rules = {**simulated().metadata["stream"]["rules"], "num_micro_batches": 3}
    with pytest.raises(InputError, match="3 others by its rules"):
        replay_trace(changed(simulated(), rules=rules))


# the engine's --------------------------------------------------------------------------------------------------------


@cache
def real(gap_s):
    asked = [engine.GenerationRequest(prompt, 2 + i % 5, arrival_s=i * gap_s) for i, prompt in enumerate(PROMPTS)]
    with EmulatedDevice(None, None, 1 << 30) as device:
        stream = engine.stream(make("mixtral"), asked, policy=Policy(4, 2), device=device, traced_steps=ALL)
        assert [one.error for one in stream] == [""] * len(asked)
        return stream.trace


@pytest.mark.parametrize("gap_s", [0.0, 0.15])
def test_admission_decides_in_the_simulator_as_it_did_in_the_engine(gap_s):
    result = replay_trace(real(gap_s))
    assert (result.stream_check.different, result.stream_check.steps_alike) == ("", result.stream_check.steps)
    assert result.order_check.replayed_s <= result.order_check.measured_s
    assert result.order_check.tasks == len(real(gap_s).spans)


def test_the_engine_tells_when_each_request_had_its_tokens():
    trace = real(0.0)
    record = msgspec.convert(trace.metadata["stream"], StreamRecord)
    assert [one.request.generated_tokens for one in record.requests] == [2 + i % 5 for i in range(len(PROMPTS))]
    checked = replay_trace(trace, MACHINE).stream_check
    told = sorted(one.times.first_token_s for one in record.requests)
    by_heads = next(one for one in checked.latencies if (one.measure, one.quantile) == ("TTFT", "p50"))
    assert by_heads.measured_s == pytest.approx(told[(len(told) - 1) // 2], abs=0.02)


def test_its_json_is_as_described(tmp_path):
    write_trace(real(0.0), tmp_path / "run.json.gz")
    found = replay_trace(read_trace(tmp_path / "run.json.gz"), MACHINE).to_dict()
    assert faults("replay", json.loads(json.dumps({"schema": 1, **found}))) == []
