"""Replay: a trace's own durations through its schedule, then the cost model's, and what is said of traces that lie."""

import gzip
import json
from dataclasses import replace
from functools import cache

import pytest
from engine_models import PROMPTS, make, make_prompts
from sim_examples import few_layers, made_setup, round_machine, with_hand_over

import engine
from engine.device import EmulatedDevice
from sim.cost import Cost, Setup
from sim.problem import Batch, Emulation, Hardware, MicroBatch, Policy, Quantity
from sim.problem.presets import MODELS
from sim.schedule import CPU, D2H, GPU, H2D, Op, Task, by_name, registered
from sim.simulation import record, start_delays
from sim.simulation.recurrence import CLOCK_SLACK_NS
from traces.errors import InputError
from traces.files import read_trace, write_trace
from traces.trace import Span, Trace
from validation.cli import main
from validation.replay import rebuild_setup, recorded, replay_trace
from validation.replay.accuracy import path_agreement
from validation.replay.checks import makespan_with_delays_ns, replay_steps, summarise
from validation.replay.picture import Window, bounds_ns, window_of

MODEL = "mixtral-8x7b"
GEN_LEN = 4
NEW = 5
every_schedule = pytest.mark.parametrize("name", registered())


@cache
def setup_of(name, **policy):
    """Three layers of Mixtral on a machine whose DRAM is so slow that lanes slow each other down."""
    machine = round_machine(host_memory__bandwidth=25e9)
    return made_setup(name, 8, 3, model=few_layers(MODEL, 3), machine=machine, **policy)


@cache
def simulated(name):
    """A whole simulated run, with the configuration that its model is rebuilt from."""
    config = {**json.loads(MODELS.path(MODEL).read_text(encoding="utf-8")), "num_hidden_layers": 3}
    return record(setup_of(name), {"model_config": config}, num_steps=GEN_LEN)


def machine_of(name):
    return setup_of(name).problem.hardware


def changed(trace, spans=None, **metadata):
    """The trace with other spans or metadata; None takes a field out."""
    kept = {key: value for key, value in {**trace.metadata, **metadata}.items() if value is not None}
    return Trace(kept, list(trace.spans if spans is None else spans))


def stretched(trace, factor):
    return changed(trace, [s._replace(start_ns=factor * s.start_ns, end_ns=factor * s.end_ns) for s in trace.spans])


# simulated runs: nothing may be lost ---------------------------------------------------------------------------------


@every_schedule
def test_a_simulated_run_is_replayed_to_the_nanosecond(name):
    """Contended durations too: sharing slows tasks down, it never delays their start."""
    trace = simulated(name)
    result = replay_trace(trace, machine_of(name))
    assert result.replayed.makespan_ns == trace.makespan_ns
    assert {s.key: (s.start_ns, s.end_ns) for s in result.replayed.spans} == {
        s.key: (s.start_ns, s.end_ns) for s in trace.spans
    }
    assert (result.order_check.error, result.order_check.error_with_dispatch, result.order_check.absent) == (0, 0, 0)
    assert result.order_check.tasks == len(trace.spans)
    assert all(gap.total_s == 0 for gap in result.order_check.gaps)


@every_schedule
def test_the_cost_model_that_made_a_run_predicts_it_without_error(name):
    result = replay_trace(simulated(name), machine_of(name))
    assert (result.duration_check.wape, result.duration_check.bias) == (0, 0)
    assert all((op.mape, op.wape, op.bias) == (0, 0, 0) for op in result.duration_check.ops)
    assert sum(op.count for op in result.duration_check.ops) == len(result.measured.spans)
    third = result.run_check
    assert (third.run.error, third.prefill.error, third.decode.error, third.throughput_error) == (0, 0, 0, 0)
    assert all(lane.points == 0 for lane in third.lanes)
    assert third.path_agreement == pytest.approx(1)
    assert third.path_tasks_agreement == 1


def test_some_of_these_runs_were_contended():
    ops = replay_trace(simulated("cgopipe"), machine_of("cgopipe")).duration_check.ops
    assert any(op.solo_bias < -0.01 for op in ops)


def test_a_part_of_a_run_is_replayed_as_a_part():
    """Two steps of four: the second fetches weights for a third that is not there."""
    whole = simulated("cgopipe")
    part = record(setup_of("cgopipe"), {"model_config": whole.metadata["model_config"]}, num_steps=2)
    result = replay_trace(part, machine_of("cgopipe"))
    assert (result.order_check.error, result.order_check.absent, result.run_check.run.error) == (0, 0, 0)
    assert result.order_check.tasks < len(whole.spans)


def test_a_preset_s_trace_needs_no_configuration_and_names_its_machine():
    trace = record(made_setup("cgopipe", 4, 2, machine=Hardware.load("gcp-t4")), {}, num_steps=2)
    result = replay_trace(trace)
    assert result.hardware.name == "gcp-t4"
    assert result.run_check.run.error == 0


def test_ranks_are_replayed():
    machine = Hardware.load("gcp-2xt4")
    trace = record(made_setup("cgopipe", 4, 2, machine=machine), {}, num_steps=2)
    assert {span.rank for span in trace.spans} == {0, 1}
    result = replay_trace(trace)
    assert (result.order_check.error, result.run_check.run.error) == (0, 0)
    assert {lane.lane for lane in result.run_check.lanes} >= {"GPU", "GPU:1", "NET"}
    with pytest.raises(InputError, match=r"gcp-t4 has 1 devices and the trace is of 2"):
        replay_trace(trace, Hardware.load("gcp-t4"))


@every_schedule
def test_the_prediction_hands_over_as_its_machine_does_and_the_law_does_not(name):
    """Half a millisecond for each step from lane to lane: the prediction has it, layer 1 misses all of it."""
    machine = with_hand_over(machine_of(name), 500)
    setup = replace(setup_of(name), problem=replace(setup_of(name).problem, hardware=machine))
    trace = record(setup, {"model_config": simulated(name).metadata["model_config"]}, num_steps=GEN_LEN)
    result = replay_trace(trace, machine)
    assert (result.duration_check.wape, result.run_check.run.error, result.run_check.decode.error) == (0, 0, 0)
    assert {s.key: (s.start_ns, s.end_ns) for s in result.predicted.spans} == {
        s.key: (s.start_ns, s.end_ns) for s in trace.spans
    }
    assert result.order_check.error < 0
    assert result.order_check.error_with_hand_over == 0
    unaware = replay_trace(trace, machine_of(name))
    assert unaware.order_check.error_with_hand_over == unaware.order_check.error == result.order_check.error
    assert unaware.run_check.run.error < 0


# errors of a known size ----------------------------------------------------------------------------------------------


def test_a_run_that_took_twice_as_long_is_predicted_at_half():
    result = replay_trace(stretched(simulated("cgopipe"), 2), machine_of("cgopipe"))
    assert result.order_check.error == 0
    assert all((op.mape, op.wape, op.bias) == (0.5, 0.5, -0.5) for op in result.duration_check.ops)
    third = result.run_check
    assert (third.run.error, third.prefill.error, third.decode.error, third.throughput_error) == (-0.5, -0.5, -0.5, 1)
    assert all(lane.points == 0 for lane in third.lanes)
    assert third.path_agreement == pytest.approx(1)


def test_throughput_counts_the_tokens_of_each_phase():
    third = replay_trace(simulated("cgopipe"), machine_of("cgopipe")).run_check
    assert third.run.measured_tokens_per_s * third.run.measured_s == pytest.approx(24 * GEN_LEN)
    assert third.prefill.measured_tokens_per_s * third.prefill.measured_s == pytest.approx(24)
    assert third.run.measured_s == pytest.approx(third.prefill.measured_s + third.decode.measured_s)


def delayed(trace, op, delay_ns):
    """One task after the other, as `accelerate` runs; each of `op` starts later by `delay_ns`, and so does the rest."""
    spans, late = [], 0
    for span in sorted(trace.spans, key=lambda span: span.start_ns):
        late += delay_ns * (span.op == op and span.start_ns > 0)
        spans.append(span._replace(start_ns=span.start_ns + late, end_ns=span.end_ns + late))
    return changed(trace, spans), late


def test_time_between_tasks_is_found_and_told_by_the_lanes_it_lies_between():
    """Copies start 3 ms late: the law knows nothing of it, the latency measured between the lanes makes up for it."""
    trace = simulated("accelerate")
    late_trace, late_ns = delayed(trace, Op.LOAD_WEIGHTS_PAGEABLE, 3_000_000)
    layer = replay_trace(late_trace).order_check
    assert layer.replayed_s * 1e9 == pytest.approx(trace.makespan_ns)
    assert layer.error == pytest.approx(-late_ns / late_trace.makespan_ns)
    assert layer.error_with_dispatch == 0
    (gap,) = [gap for gap in layer.gaps if gap.total_s]
    assert (gap.before, gap.after, gap.median_s) == ("GPU", "H2D", 0.003)
    assert gap.total_s == pytest.approx(late_ns / 1e9) == pytest.approx(gap.count * gap.median_s)


def test_rare_delays_are_no_latency():
    """The median hand-over delay of a pair of lanes is zero when one of many is late."""
    trace = simulated("accelerate")
    spans = sorted(trace.spans, key=lambda span: span.start_ns)
    late = [s._replace(start_ns=s.start_ns + 10**7, end_ns=s.end_ns + 10**7) for s in spans[len(spans) // 2 :]]
    layer = replay_trace(changed(trace, [*spans[: len(spans) // 2], *late])).order_check
    assert layer.error_with_dispatch == layer.error < 0
    assert layer.measured_s - layer.replayed_s == pytest.approx(0.01)


def span_of_task(task, start_ns, end_ns, cause=-1):
    """A task as it ran."""
    op, rank, step, layer, micro_batch, page = task.key
    return Span(task.id, op, task.lane.kind.value, rank, step, layer, micro_batch, page, start_ns, end_ns, cause=cause)


def by_hand(*ran):
    """Tasks, each with its lane, dependencies and, if it ran, start and end; and the spans of those that ran."""
    tasks = [Task(id_, Op.ATTN, lane, 0, micro_batch=id_, deps=deps) for id_, (lane, deps, _) in enumerate(ran)]
    times = ((task, when) for task, (_, _, when) in zip(tasks, ran, strict=True) if when is not None)
    return tasks, {task.key: span_of_task(task, *when) for task, when in times}


def test_hand_over_delays_by_hand():
    """The GPU goes on after 2 and after 4, the copy starts 7 after the GPU's second task, and the GPU 1 after the copy.

    With the medians 3, 7 and 1 between tasks of 10 each, the last ends at 10 + 3 + 10 + 3 + 10, or by way of the copy
    at 10 + 3 + 10 + 7 + 10 + 1 + 10.
    """
    tasks, spans = by_hand(
        (GPU, (), (0, 10)), (GPU, (), (12, 22)), (H2D, (1,), (29, 39)), (GPU, (), (26, 36)), (GPU, (2,), (40, 50))
    )
    found = start_delays(tasks, spans)
    assert found == {(GPU, GPU): [2, 4], (GPU, H2D): [7], (H2D, GPU): [1]}
    assert makespan_with_delays_ns(tasks, spans, found) == 51
    assert makespan_with_delays_ns(tasks, spans, {}) == 40
    assert [(gap.before, gap.after, gap.count, gap.median_s, gap.total_s) for gap in summarise(found)] == [
        ("GPU", "H2D", 1, 7e-9, 7e-9), ("GPU", "GPU", 2, 3e-9, 6e-9), ("H2D", "GPU", 1, 1e-9, 1e-9)
    ]  # fmt: skip


def test_one_delay_in_ten_is_longer_than_the_ninth_decile():
    assert summarise({(GPU, H2D): list(range(100))})[0].p90_s == 90e-9
    assert summarise({(GPU, H2D): [5]})[0].p90_s == 5e-9


def test_behind_a_task_that_had_nothing_to_do_is_the_one_that_it_waited_for():
    """The copy did not run: the CPU's task waits, by way of it, for the GPU's, and starts 5 after that."""
    tasks, spans = by_hand((GPU, (), (0, 10)), (D2H, (0,), None), (CPU, (1,), (15, 20)))
    assert start_delays(tasks, spans) == {(GPU, CPU): [5]}


def test_critical_paths_by_hand():
    """Measured: a copy for 60, then the GPU for 40. Predicted: the CPU for 30, then the same task of the GPU for 20."""
    copy, other, compute = (Task(i, op, lane, 0) for i, (op, lane) in enumerate(
        [(Op.LOAD_KV, H2D), (Op.ATTN, CPU), (Op.POST_ATTN, GPU)]))  # fmt: skip
    origin = {"origin": "simulated"}
    measured = [span_of_task(copy, 0, 60), span_of_task(other, 0, 30), span_of_task(compute, 60, 100, cause=0)]
    predicted = [span_of_task(copy, 0, 10), span_of_task(other, 0, 30), span_of_task(compute, 30, 50, cause=1)]
    rows, by_op_and_lane, by_task = path_agreement(Trace(origin, measured), Trace(origin, predicted))
    assert [(row.op, row.lane, row.measured, row.predicted) for row in rows] == [
        ("Attn", "CPU", 0, 0.6), ("LoadKV", "H2D", 0.6, 0), ("PostAttn", "GPU", 0.4, 0.4)
    ]  # fmt: skip
    assert (by_op_and_lane, by_task) == (0.4, 0.4)


# tasks that had nothing to do ----------------------------------------------------------------------------------------


def ended_early(name, ended):
    """The simulated run in which those tasks were not there, because their requests had ended."""
    trace = simulated(name)
    run = recorded(trace)
    costs = rebuild_setup(trace, run, machine_of(name)).costs(only_contended=True)
    spans = {span.key: span for span in trace.spans if not ended(span)}
    return changed(trace, replay_steps(run, spans, costs, costs.capacities).spans)


@pytest.mark.parametrize("name", [name for name, schedule in registered().items() if not schedule.system.one_batch])
def test_a_micro_batch_that_ended_early_takes_no_more_time(name):
    def ended(span):
        return span.micro_batch == 1 and span.step >= 2

    trace = ended_early(name, ended)
    result = replay_trace(trace, machine_of(name))
    assert result.order_check.absent == sum(map(ended, simulated(name).spans)) > 0
    assert (result.order_check.error, result.duration_check.wape, result.run_check.run.error) == (0, 0, 0)
    assert trace.makespan_ns < simulated(name).makespan_ns
    assert result.run_check.run.measured_tokens_per_s * result.run_check.run.measured_s == pytest.approx(24 * 4 - 8 * 2)


@every_schedule
def test_a_generation_that_ended_early_has_no_later_steps(name):
    result = replay_trace(ended_early(name, lambda span: span.step >= 2), machine_of(name))
    assert (result.order_check.error, result.run_check.run.error) == (0, 0)
    assert result.order_check.absent < len(simulated(name).spans) / GEN_LEN


# the engine's runs ---------------------------------------------------------------------------------------------------


@cache
def ran(name, size=2, places=(), **kwargs):
    """A tiny run on the emulated device: seven prompts of different lengths in micro-batches."""
    policy = Policy.usual(by_name(name), len(PROMPTS), size, **dict(places))
    with EmulatedDevice(2e8, 2e8, 1 << 30) as device:
        return engine.run(make("mixtral"), PROMPTS, name, policy, max_new_tokens=NEW, device=device, **kwargs)


@every_schedule
def test_a_real_run_replayed_loses_at_most_the_gaps_between_its_tasks(name):
    """The law never needs longer than the run did: its lanes do not wait for threads."""
    trace = ran(name).trace
    layer = replay_trace(trace).order_check
    assert (layer.tasks, layer.absent) == (len(trace.spans), 0)
    assert layer.error <= 0
    begins = sum(min(span.start_ns for span in trace.spans_of(lane)) for lane in trace.lanes())
    assert layer.measured_s - layer.replayed_s <= sum(gap.total_s for gap in layer.gaps) + begins / 1e9
    assert layer.replayed_s >= max(trace.busy_ns().values()) / 1e9
    assert layer.replayed_s <= layer.with_dispatch_s


@every_schedule
def test_the_cost_model_knows_the_bytes_of_every_copy_of_a_real_run(name):
    """Padding is copied and stored, as the rebuilt micro-batches say. A layer's pages end on multiples of 64 bytes."""
    check_bytes(ran(name).trace)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.75])
@pytest.mark.parametrize("name", ["cgopipe", "flexgen"])
def test_the_cost_model_knows_the_bytes_of_a_cache_in_two_places(name, share):
    """Of four requests one, two or three keep theirs on the device; of the last three none, one or two."""
    trace = ran(name, 4, (("attention", "gpu"), ("kv_on_device", share))).trace
    assert any(span.op == "LoadKV" for span in trace.spans)
    check_bytes(trace)


def check_bytes(trace):
    ours = replace(round_machine(), emulation=Emulation(Quantity(1, "1"), Quantity(1, "1")))
    predicted = {span.key: span for span in replay_trace(trace, ours).predicted.spans}
    by_chance = "FetchExperts"  # what is fetched is what the router asked for
    copies = [span for span in trace.spans if span.lane in ("H2D", "D2H", "PIN") and span.op != by_chance]
    assert copies
    for span in copies:
        slack = 64 if "Weights" in span.op else 0
        assert predicted[span.key].bytes == pytest.approx(span.bytes, abs=slack), span


def test_attention_on_the_host_reads_no_padding():
    """Prompts of 12 and 9 tokens, padded to 12: in decode step 2 two requests read 12 + 2 and 9 + 2 tokens."""
    trace = ran("cgopipe").trace
    setup = rebuild_setup(trace, recorded(trace), round_machine())
    assert setup.batch.micro_batches[0] == MicroBatch(2, 24, 2 * 144, 12, padding_tokens=3)
    per_token = setup.problem.model.layers[0].kv_bytes_per_token(32)
    task = next(one for step in recorded(trace).steps() for one in step if one.key == (Op.ATTN, 0, 2, 0, 0, -1))
    assert setup.costs()(task).bytes == (12 + 2 + 9 + 2) * per_token
    assert setup.problem.model.activation_bits == setup.problem.model.widths.experts == 32


def test_real_runs_are_compared_with_a_machine():
    result = replay_trace(ran("cgopipe").trace, round_machine())
    assert result.duration_check.wape > 0.01
    assert result.run_check.run.predicted_s < result.run_check.run.measured_s
    assert {op.op for op in result.duration_check.ops} == {span.op for span in result.measured.spans}
    assert 0 <= result.run_check.path_tasks_agreement <= 1
    assert 0 <= result.run_check.path_agreement <= 1


def test_a_run_without_a_machine_gets_layer_1_and_the_reason():
    result = replay_trace(ran("cgopipe").trace)
    assert (result.duration_check, result.run_check, result.predicted, result.hardware) == (None, None, None, None)
    assert "--hardware" in result.why_not


def test_a_machine_may_be_described_in_the_trace_itself():
    trace = changed(simulated("cgopipe"), hardware=machine_of("cgopipe").to_dict())
    assert replay_trace(trace).run_check.run.error == 0
    for unusable in ({"name": "nearly nothing"}, "a machine that nobody knows", 5):
        assert replay_trace(changed(trace, hardware=unusable)).duration_check is None


def test_every_batch_of_a_run_is_replayed():
    """Seven prompts in batches of four: the second has two micro-batches, one of a single request."""
    policy = Policy.usual(by_name("cgopipe"), 4, 2)
    traces = []
    engine.run(
        make("mixtral"), PROMPTS, "cgopipe", policy, max_new_tokens=2, on_batch=lambda batch: traces.append(batch.trace)
    )
    requests = [recorded(trace).batch.num_requests for trace in traces]
    assert requests == [4, 3]
    for trace in traces:
        assert replay_trace(trace, round_machine()).order_check.tasks == len(trace.spans)


def test_a_real_run_in_which_requests_end_early_is_replayed():
    """A token that the model is known to give early is made the end token."""
    plain = ran("cgopipe").sequences
    eos = plain[0][1]
    with EmulatedDevice(None, None, 1 << 30) as device:
        result = engine.run(
            make("mixtral"), PROMPTS[:2] * 2, "cgopipe", micro_batch_size=1, max_new_tokens=NEW, device=device,
            eos_token_id=eos,
        )  # fmt: skip
    assert any(len(sequence) < NEW for sequence in result.sequences)
    layer = replay_trace(result.trace).order_check
    assert layer.absent > 0
    assert layer.error <= 0


def test_dense_and_windowed_layers_are_rebuilt():
    for family in ("glm4_moe", "gpt_oss", "qwen3_moe"):
        result = engine.run(make(family), make_prompts(4, 6), micro_batch_size=1, max_new_tokens=2)
        assert replay_trace(result.trace, round_machine()).duration_check is not None


# traces that cannot be replayed --------------------------------------------------------------------------------------


def moved(trace, **changes):
    """The trace with its last span changed."""
    return changed(trace, [*trace.spans[:-1], trace.spans[-1]._replace(**changes)])


EMPTY = {"num_requests": 0, "prompt_tokens": 8, "prompt_tokens_squared": 64, "max_prompt_tokens": 8}
SHAPE = {"num_layers": 3, "num_micro_batches": 3, "num_pages": 3, "attention": "cpu", "streamed": [True] * 3}


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"schedule": None}, r"no metadata.schedule; a replay needs a trace of"),
        ({"schedule": "nobodys"}, "nobodys"),
        ({"shape": None}, r"no metadata.shape; a replay needs a trace of `python -m engine run --trace`"),
        ({"batch": None}, "no metadata.batch"),
        ({"batch": [1]}, "metadata.batch cannot be used: Expected `object`, got `array`"),
        ({"shape": {"num_layers": 3}}, "missing required field `num_micro_batches`"),
        ({"shape": {**SHAPE, "num_layers": 0}}, "metadata.shape cannot be used: num_layers: 0"),
        ({"shape": {**SHAPE, "attention": "moon"}}, r"Invalid enum value 'moon' - at `\$.attention`"),
        (
            {"batch": {"gen_len": 0, "copies": 1, "micro_batches": []}},
            r"Expected `int` >= 1 - at `\$.gen_len`",
        ),
        ({"batch": {"gen_len": 4, "copies": 1, "micro_batches": []}}, "0 micro-batches and its shape 3"),
        (
            {"batch": {"gen_len": 4, "copies": 1, "micro_batches": [{"num_requests": 1}]}},
            "required field `prompt_tokens`",
        ),
        ({"batch": {"gen_len": 4, "copies": 1, "micro_batches": [EMPTY]}}, "num_requests=0.* is too small"),
        ({"steps": [1, 3]}, r"steps is \[1, 3\]"),
        ({"steps": [0, 9]}, r"steps is \[0, 9\]"),
    ],
    ids=str,
)
def test_metadata_that_do_not_tell_the_run_are_named(metadata, said):
    with pytest.raises(InputError, match=said):
        replay_trace(changed(simulated("cgopipe"), **metadata))


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"policy": None}, "no metadata.policy"),
        ({"policy": {"batch_size": 24}}, "micro_batch_size"),
        ({"model_config": None, "model": "my-own"}, "'my-own', which is no preset"),
        ({"model_config": {"model_type": "llama"}}, "no experts"),
        ({"policy": {"batch_size": 24, "micro_batch_size": 8, "pages": 2}}, "num_pages = 2, but its shape says 3"),
    ],
    ids=str,
)
def test_what_the_cost_model_lacks_is_named_and_layer_1_needs_none_of_it(metadata, said):
    trace = changed(simulated("cgopipe"), **metadata)
    assert replay_trace(trace).order_check.error == 0
    with pytest.raises(InputError, match=said):
        replay_trace(trace, machine_of("cgopipe"))


def test_spans_that_the_schedule_does_not_issue_are_named():
    trace = simulated("cgopipe")
    for other in (moved(trace, op="Gemm"), moved(trace, micro_batch=99), moved(trace, step=GEN_LEN - 1, layer=99)):
        with pytest.raises(InputError, match="does not issue: was it made by another version"):
            replay_trace(other)
    twice = trace.spans[-1]._replace(id=10**6, start_ns=trace.end_ns, end_ns=trace.end_ns, cause=-1)
    with pytest.raises(InputError, match="a run does each task once"):
        replay_trace(changed(trace, [*trace.spans, twice]))


def test_a_run_in_another_order_than_the_schedule_s_is_refused():
    """The same tasks, but the last one far too early: it cannot have waited for what it should have waited for."""
    trace = ran("cgopipe").trace
    last = max(trace.spans, key=lambda span: span.end_ns)
    before = max(span.end_ns for span in trace.spans_of((last.lane, last.rank)) if span.id != last.id)
    early = [s._replace(start_ns=s.start_ns + 10**9, end_ns=s.end_ns + 10**9) if s.id != last.id else s
             for s in trace.spans if s.end_ns <= before or s.id == last.id]  # fmt: skip
    with pytest.raises(InputError, match="ms before what it waits for"):
        replay_trace(changed(trace, [span._replace(cause=-1) for span in early]))


def test_clocks_may_disagree_a_little():
    trace = simulated("accelerate")
    spans = sorted(trace.spans, key=lambda span: span.start_ns)
    lane = next(i for i in range(1, len(spans)) if spans[i].lane != spans[i - 1].lane and spans[i].lane == "GPU")
    for early, fits in ((CLOCK_SLACK_NS, True), (CLOCK_SLACK_NS + 1, False)):
        shifted = [*spans]
        shifted[lane] = spans[lane]._replace(start_ns=spans[lane].start_ns - early, cause=-1)
        trace = changed(trace, shifted)
        if fits:
            assert replay_trace(trace).order_check.tasks == len(spans)
        else:
            with pytest.raises(InputError, match=r"starts 0\.100 ms before"):
                replay_trace(trace)


def test_a_trace_without_work_is_refused():
    trace = simulated("cgopipe")
    with pytest.raises(InputError, match="no spans"):
        replay_trace(changed(trace, []))
    with pytest.raises(InputError, match="no time at all"):
        replay_trace(changed(trace, [span._replace(start_ns=0, end_ns=0) for span in trace.spans]))


# a setup of a given batch --------------------------------------------------------------------------------------------


def test_a_given_batch_stands_for_that_of_the_workload():
    usual = made_setup("cgopipe", 8, 2)
    batch = Batch((MicroBatch.padded([3, 7]), MicroBatch.padded([5])), 0, 4)
    given = Setup(usual.problem, usual.schedule, usual.policy, batch)
    assert given.batch is batch
    assert given.shape.num_micro_batches == 2
    assert replace(given, policy=replace(usual.policy, micro_batch_size=4)).batch is batch
    assert batch.micro_batches[0] == MicroBatch(2, 14, 98, 7, padding_tokens=4)


def test_simulate_takes_any_cost():
    """Every task one microsecond: the makespan is the longest chain, a whole number of them."""
    trace = simulated("cgopipe")
    run = recorded(trace)
    spans = {span.key: span for span in trace.spans}
    unit = replay_steps(run, spans, lambda task: Cost(1000))
    assert unit.makespan_ns % 1000 == 0
    assert len(unit.spans) == len(spans)
    assert max(unit.busy_ns().values()) < unit.makespan_ns < 1000 * len(spans)


# the command ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    """A trace of the engine and a machine."""
    trace, machine = tmp_path / "run.json.gz", tmp_path / "machine.toml"
    write_trace(ran("cgopipe").trace, trace)
    machine.write_text('extends = "t4"\n', encoding="utf-8")
    return trace, machine


def test_the_command_tells_all_layers(files, capsys):
    trace, machine = files
    assert main(["replay", str(trace), "--hardware", str(machine)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for said in ("emulated device", "Layer 1", "bar of 3%", "Layer 2", "PostAttn", "Layer 3", "critical path", "GPU"):
        assert said in shown
    assert "simulated" in shown


def test_without_a_machine_the_command_says_what_is_missing(files, capsys):
    assert main(["replay", str(files[0])]) == 0
    assert "not done, the trace describes no machine" in " ".join(capsys.readouterr().out.split())


def test_json_is_the_numbers_of_the_replay(files, capsys, tmp_path):
    trace, machine = files
    assert main(["replay", str(trace), "--hardware", str(machine), "--json", "-"]) == 0
    shown = json.loads(capsys.readouterr().out)
    expected = replay_trace(read_trace(trace), Hardware.load(machine)).to_dict()
    assert shown == {"schema": 1, **json.loads(json.dumps(expected))}
    assert shown["origin"] == "emulated device"
    assert set(shown["layer3"]) >= {"run", "prefill", "decode", "lanes", "path_agreement", "throughput_error"}
    assert main(["replay", str(trace), "--hardware", str(machine), "--json", str(tmp_path / "out.json")]) == 0
    assert json.loads((tmp_path / "out.json").read_text()) == shown


def foreign(path):
    path.write_text(json.dumps({"traceEvents": [{"ph": "X", "name": "gemm", "pid": 1, "tid": 1, "ts": 1, "dur": 2}]}))


def damaged(path):
    path.write_bytes(gzip.compress(b"{}" * 100)[:-12])


@pytest.mark.parametrize("write", [foreign, damaged, lambda path: None], ids=["foreign", "damaged", "missing"])
def test_a_file_that_is_no_trace_is_one_line(write, tmp_path, capsys):
    path = tmp_path / "other.json.gz"
    write(path)
    assert main(["replay", str(path)]) == 2
    error = capsys.readouterr().err
    assert str(path) in error
    assert error.count("\n") == 1


def test_mistakes_are_found_before_the_work_and_told_in_one_line(files, capsys, tmp_path):
    trace, _ = files
    old = tmp_path / "old.json"
    write_trace(changed(ran("cgopipe").trace, shape=None), old)
    for arguments, said in (
        ([str(trace), "--hardware", "nowhere.toml"], "nowhere.toml: cannot be read"),
        ([str(trace), "--hardware", "nothing"], "unknown hardware 'nothing'"),
        ([str(trace), "--plot", "picture.bmp"], "picture.bmp"),
        ([str(trace), "--json", str(tmp_path / "no" / "out.json")], "cannot be written"),
        ([str(trace), "--plot", str(tmp_path / "no" / "out.png")], "cannot be written"),
        ([str(old)], f"{old}: the trace has no metadata.shape"),
        ([], "required: FILE"),
    ):
        assert main(["replay", *arguments]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


# the picture ---------------------------------------------------------------------------------------------------------


def test_the_picture_shows_both_runs_whole_and_in_part(files, tmp_path):
    trace, machine = files
    for options, said in ((["--hardware", str(machine)], "predicted for machine"), ([], "durations replayed")):
        path = tmp_path / "picture.svg"
        assert main(["replay", str(trace), "--plot", str(path), *options]) == 0
        drawn = path.read_text(encoding="utf-8")
        assert drawn.count("whole run") == 2
        assert drawn.count("step 2, layers 0 to 2") == 2
        assert "emulated device" in drawn
        assert said in drawn
        assert {lane for lane in ("GPU", "CPU", "H2D", "D2H", "PIN") if f"<!-- {lane} -->" in drawn} == {
            "GPU", "CPU", "H2D", "D2H", "PIN"
        }  # fmt: skip


def test_a_window_is_some_layers_of_a_middle_step_from_end_to_end():
    trace = simulated("cgopipe")
    window = window_of(trace)
    assert window == Window(1, 0, 2)
    start, stop = bounds_ns(trace, window)
    heads = [max(s.end_ns for s in trace.spans if s.op == Op.HEAD and s.step == step) for step in (0, 1)]
    assert start == heads[0]
    assert start < stop <= heads[1]
    inner_start, inner_stop = bounds_ns(trace, Window(1, 1, 1))
    assert start < inner_start < inner_stop < stop


def test_a_window_of_prefill_alone():
    trace = record(setup_of("cgopipe"), {"model_config": simulated("cgopipe").metadata["model_config"]}, num_steps=1)
    window = window_of(trace)
    assert window.step == 0
    start, stop = bounds_ns(trace, window)
    assert trace.start_ns <= start < stop <= trace.end_ns
