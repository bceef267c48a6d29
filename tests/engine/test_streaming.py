"""A stream of requests: each has the tokens of plain generate(), whatever its company, and nothing is left behind."""

import _thread
import faulthandler
import functools
import gc
import threading
from collections import Counter
from pathlib import Path

import msgspec
import pytest
import torch
from engine_models import PROMPTS, VOCAB, make, make_prompts, reference
from hypothesis import given, settings, strategies as st
from stream_examples import serve
from transformers import LogitsProcessor, StoppingCriteria

import engine
from engine.device import EmulatedDevice
from engine.lanes.executor import TaskError
from sim.admission import Admission, StreamedRequest
from sim.cost.memory import plan_memory
from sim.problem import Batch, MicroBatch, Model, Policy
from sim.schedule import by_name
from sim.simulation import REQUESTS, StreamRecord
from traces.errors import InputError

NEW = 12
EOS = 24  # a token that ends some of the prompts of `make("mixtral")` early
LIMIT_S = 120
"""A test that takes so long hangs: it ends the process, and says where each thread is."""

MIXING = {
    "cgopipe": {},
    "cgopipe, attention on the GPU": {"attention": "gpu"},
    "cgopipe, all page-locked": {"pin_weights": 1.0, "experts_on_device": 0.5},
    "hybrid": {"experts_on_host": 0.5, "groups": 2},
    "hybrid in one group": {"experts_on_device": 0.25, "experts_fetched": 0.25, "experts_on_host": 0.25},
}
FAMILIES = ("mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3")
"""Fused experts and our own kernel; another router; sinks and sliding windows; a cache that the model computes with."""


@pytest.fixture(autouse=True)
def hang_is_an_error():
    faulthandler.dump_traceback_later(LIMIT_S, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def device():
    with EmulatedDevice(None, None, 1 << 30) as made:
        yield made


def policy_of(name, size=2, count=2):
    schedule = by_name(name.partition(",")[0].partition(" ")[0])
    return schedule, Policy.usual(schedule, size * count, size, **MIXING[name])


@functools.lru_cache(maxsize=256)
def _alone(family, eos, prompt, most):
    return tuple(reference(make(family, eos=eos), [list(prompt)], 1, most)[0])


def alone(family, prompt, most=NEW, eos=None):
    """What plain generate() makes of one prompt."""
    return list(_alone(family, eos, tuple(prompt), 20)[:most])


def outputs_of(stream):
    """By number; each once."""
    found = list(stream)
    assert max(Counter(one.number for one in found).values()) == 1
    return {one.number: one for one in found}


def check(family, prompts, *, eos=None, limits=None, **options):
    """Runs a stream of prompts, each as far as its limit, and compares it with each of them alone."""
    limits = limits or [NEW] * len(prompts)
    asked = [engine.GenerationRequest(*pair) for pair in zip(prompts, limits, strict=True)]
    found = outputs_of(engine.stream(make(family, eos=eos), asked, **options))
    assert [found[i].error for i in range(len(prompts))] == [""] * len(prompts)
    assert [found[i].sequence for i in range(len(prompts))] == [
        alone(family, prompt, most, eos) for prompt, most in zip(prompts, limits, strict=True)
    ]
    return found


# the tokens ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["cgopipe", "hybrid"])
def test_each_request_has_the_tokens_of_generate(family, name, device):
    schedule, policy = policy_of(name)
    check(family, PROMPTS, schedule=schedule, policy=policy, device=device)


@pytest.mark.parametrize("name", MIXING)
def test_so_it_is_wherever_things_lie(name, device):
    schedule, policy = policy_of(name)
    check("mixtral", PROMPTS, eos=EOS, limits=[3, 12, 1, 7, 12, 5, 9], schedule=schedule, policy=policy, device=device)


@pytest.mark.parametrize(("num_prompts", "size"), [(1, 3), (2, 1), (3, 2)])
def test_several_micro_batches_of_prompts(num_prompts, size, device):
    policy = Policy(3 * size, size)
    check("mixtral", PROMPTS * 2, policy=policy, num_prompts=num_prompts, device=device, eos=EOS)


def test_longest_first_and_prompts_that_do_not_fit_one_step(device):
    check("mixtral", PROMPTS, micro_batch_size=3, prefill_chunk=14, priority="longest", device=device)


def test_sampled_as_each_request_alone_would_be(device):
    model, prompts = make("qwen3_moe"), make_prompts(5, 9, 3, 7)
    chosen = {"do_sample": True, "top_k": 20, "temperature": 1.3}
    stream = engine.stream(model, prompts, micro_batch_size=2, max_new_tokens=NEW, seed=5, device=device, **chosen)
    found = outputs_of(stream)
    assert [found[i].sequence for i in range(4)] == reference(model, prompts, 1, NEW, seed=5, **chosen)


class Ends(StoppingCriteria):
    """Ends a request at a token of an odd number."""

    def __call__(self, input_ids, scores, **kwargs):
        return input_ids[:, -1] % 2 == 1


def test_criteria_of_the_caller_end_each_request_where_they_say(device):
    stream = engine.stream(
        make("mixtral"), PROMPTS, micro_batch_size=3, max_new_tokens=NEW, device=device, stopping_criteria=[Ends()]
    )
    found = outputs_of(stream)
    for number, prompt in enumerate(PROMPTS):
        whole = alone("mixtral", prompt)
        odd = next((i for i, token in enumerate(whole) if token % 2), NEW)
        assert found[number].sequence == whole[: odd + 1]


# random streams ------------------------------------------------------------------------------------------------------


@st.composite
def streams(draw):
    """Prompts, what each may generate, a policy, and which are cancelled after how many outputs."""
    number = draw(st.integers(1, 12))
    lengths = draw(st.lists(st.integers(1, 20), min_size=number, max_size=number))
    limits = draw(st.lists(st.integers(1, 20), min_size=number, max_size=number))
    cancelled = draw(st.dictionaries(st.integers(0, number - 1), st.integers(0, number), max_size=4))
    name = draw(st.sampled_from(sorted(MIXING)))
    schedule, policy = policy_of(name, draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    options = {
        "num_prompts": draw(st.integers(1, 2)),
        "prefill_chunk": draw(st.none() | st.integers(20, 60)),
        "priority": draw(st.sampled_from(["arrival", "longest"])),
    }
    return lengths, limits, cancelled, {"schedule": schedule, "policy": policy, **options}


def check_random(family, drawn):
    lengths, limits, cancelled, options = drawn
    prompts = make_prompts(*lengths, seed=sum(lengths))
    asked = [engine.GenerationRequest(*pair) for pair in zip(prompts, limits, strict=True)]
    found, before = {}, threading.active_count()
    with EmulatedDevice(None, None, 1 << 30) as device:
        stream = engine.stream(make(family, eos=EOS), asked, device=device, **options)
        for number in [number for number, when in cancelled.items() if when == 0]:
            stream.cancel(number)
        for output in stream:
            assert output.number not in found, "an output comes twice"
            found[output.number] = output
            for number in [number for number, when in cancelled.items() if when == len(found)]:
                stream.cancel(number)
        assert device.usage.current_bytes == device.pinned.usage.current_bytes == 0
    assert threading.active_count() == before
    assert found.keys() == set(range(len(prompts)))
    for number, output in found.items():
        whole = alone(family, prompts[number], limits[number], EOS)
        if output.error == "cancelled":
            assert number in cancelled
            assert output.sequence == whole[: len(output.sequence)]
        else:
            assert (output.sequence, output.error) == (whole, "")


@settings(max_examples=6, deadline=None, derandomize=True)
@given(drawn=streams())
def test_any_stream(drawn):
    check_random("mixtral", drawn)


@pytest.mark.exhaustive
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=150, deadline=None)
@given(drawn=streams())
def test_many_streams_of_every_family(family, drawn):
    faulthandler.dump_traceback_later(LIMIT_S, exit=True)  # for each of them
    check_random(family, drawn)


# one decider ---------------------------------------------------------------------------------------------------------


def test_steps_carry_what_the_simulator_would_have_them_carry(device, monkeypatch):
    """The same admission, told in the same steps: given the lengths that came out, it decides the same again."""
    decided, rules = [], []
    step = Admission.step

    def told(self, ended=()):
        rules[:] = [self.rules]
        decided.append(step(self, ended))
        return decided[-1]

    monkeypatch.setattr(Admission, "step", told)
    limits = [3, 12, 1, 7, 12, 5, 9]
    found = check("mixtral", PROMPTS, eos=EOS, limits=limits, micro_batch_size=2, num_prompts=2, device=device)
    monkeypatch.undo()
    requests = [StreamedRequest(i, len(PROMPTS[i]), limits[i], len(found[i].sequence)) for i in range(len(PROMPTS))]
    assert [one.composition for one in serve(rules[0], requests)] == decided


# who ends, and how ---------------------------------------------------------------------------------------------------


def test_requests_that_cannot_be_run_end_alone(device):
    good = engine.GenerationRequest(PROMPTS[1], 5)
    asked = [
        [], good, [VOCAB + 3], engine.GenerationRequest(PROMPTS[0], 0), "text", make_prompts(60)[0], 7
    ]  # fmt: skip
    found = outputs_of(engine.stream(make("mixtral"), asked, max_new_tokens=NEW, device=device))
    assert found[1].sequence == alone("mixtral", PROMPTS[1], 5)
    told = {0: "is empty", 2: "vocabulary", 3: "max_new_tokens: 0", 4: "no tokenizer", 5: "64 positions", 6: "is a int"}
    for number, words in told.items():
        assert words in found[number].error
        assert found[number].sequence == []


def test_a_prompt_longer_than_a_step_takes_ends_alone(device):
    stream = engine.stream(make("mixtral"), PROMPTS, max_new_tokens=NEW, prefill_chunk=9, device=device)
    found = outputs_of(stream)
    assert "which is computed whole, is more than the 9 that a step takes" in found[4].error
    assert all(found[i].sequence == alone("mixtral", PROMPTS[i]) for i in range(len(PROMPTS)) if i != 4)


class Raises(LogitsProcessor):
    """Raises for every batch in which some request has this prompt, from its third token on."""

    def __init__(self, prompt, after):
        self.prompt, self.after = torch.tensor(prompt), after

    def __call__(self, input_ids, scores):
        width = len(self.prompt)
        for row in input_ids:
            for first in range(len(row) - width - self.after + 1):
                if torch.equal(row[first : first + width], self.prompt):
                    raise ValueError("never this one")
        return scores


@pytest.mark.parametrize("after", [0, 3])
def test_a_request_whose_processor_raises_ends_alone_with_its_error(after, device):
    found = outputs_of(
        engine.stream(
            make("mixtral"),
            PROMPTS,
            micro_batch_size=3,
            max_new_tokens=NEW,
            device=device,
            logits_processor=[Raises(PROMPTS[3], after)],
        )
    )
    assert found[3].error == "ValueError: never this one"
    for number in set(range(len(PROMPTS))) - {3}:
        assert (found[number].sequence, found[number].error) == (alone("mixtral", PROMPTS[number]), "")


@pytest.mark.parametrize(("part", "call"), [("mlp", 7), ("input_layernorm", 7), ("input_layernorm", 1)])
def test_what_breaks_in_the_model_ends_the_stream_and_leaves_nothing_behind(part, call, device):
    """Among requests that decode, or in their prompts."""
    model, calls = make("mixtral"), []

    def hook(*_):
        calls.append(1)
        if len(calls) == call:
            raise ValueError("broken")

    before, parameters = threading.active_count(), dict(model.named_parameters())
    handle = getattr(model.model.layers[1], part).register_forward_pre_hook(hook)
    try:
        with pytest.raises(TaskError, match="layer 1"):
            list(engine.stream(model, PROMPTS, micro_batch_size=2, max_new_tokens=NEW, device=device))
    finally:
        handle.remove()
    assert threading.active_count() == before
    assert device.usage.current_bytes == device.pinned.usage.current_bytes == 0
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    check("mixtral", PROMPTS, micro_batch_size=2, device=device)


@pytest.mark.parametrize("taken", [0, pytest.param(1, marks=pytest.mark.exhaustive), 4])
def test_closed_early_nothing_is_left_behind(taken, device):
    model, before = make("mixtral"), threading.active_count()
    parameters = dict(model.named_parameters())
    with engine.stream(model, PROMPTS * 3, micro_batch_size=2, max_new_tokens=40, device=device) as stream:
        for _ in range(taken):
            next(stream)
    assert stream.stats is None or stream.stats.generated_tokens < 3 * 40 * len(PROMPTS)
    assert threading.active_count() == before
    assert device.usage.current_bytes == device.pinned.usage.current_bytes == 0
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())


def test_who_leaves_the_loop_ends_the_stream(device):
    before = threading.active_count()
    for output in engine.stream(make("mixtral"), PROMPTS * 3, micro_batch_size=2, max_new_tokens=40, device=device):
        assert output.error == ""
        break
    assert threading.active_count() == before
    assert device.usage.current_bytes == 0


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c(device):
    done = []

    def interrupt(output):
        done.append(output)
        if len(done) == 2:
            _thread.interrupt_main()

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        list(
            engine.stream(
                make("mixtral"), PROMPTS * 4, micro_batch_size=1, max_new_tokens=40, device=device, on_result=interrupt
            )
        )
    assert len(done) < 4 * len(PROMPTS)
    assert threading.active_count() == before
    assert device.usage.current_bytes == 0


def test_who_is_cancelled_while_it_runs_ends_with_what_it_has(device):
    ready, opened = threading.Event(), []

    def cancel(output):
        ready.wait()
        opened[0].cancel(1)

    asked = [engine.GenerationRequest(PROMPTS[i], most) for i, most in enumerate((3, 50, 6))]
    opened.append(engine.stream(make("mixtral"), asked, micro_batch_size=3, device=device, on_result=cancel))
    ready.set()
    found = outputs_of(opened[0])
    assert found[1].error == "cancelled"
    assert found[1].sequence == reference(make("mixtral"), [PROMPTS[1]], 1, 50)[0][:3]
    assert (found[2].sequence, found[2].error) == (alone("mixtral", PROMPTS[2], 6), "")


def test_all_cancelled_is_over(device):
    stream = engine.stream(make("mixtral"), PROMPTS * 3, micro_batch_size=2, max_new_tokens=40, device=device)
    for number in range(3 * len(PROMPTS)):
        stream.cancel(number)
    assert {one.error for one in stream} == {"cancelled"}


# what it says, and what it takes -------------------------------------------------------------------------------------


def test_outputs_come_as_requests_end(device):
    """The second request ends long before the others, and is there long before they are."""
    asked = [engine.GenerationRequest(PROMPTS[0], most) for most in (20, 2, 20)]
    stream = engine.stream(make("mixtral"), asked, micro_batch_size=1, device=device)
    assert [one.number for one in stream] == [1, 0, 2]
    assert (stream.stats.num_requests, stream.stats.generated_tokens) == (3, 42)
    first, second, third = stream.stats.times
    assert 0 < first.first_token_ns < second.first_token_ns < second.end_ns < first.end_ns < third.end_ns
    assert stream.stats.whole_s.p90 == third.whole_s <= stream.stats.total_s
    assert stream.stats.to_dict()["first_token_s"]["p50"] == second.first_token_s
    assert stream.trace is None


def test_the_trace_counts_who_is_in(device):
    stream = engine.stream(
        make("mixtral"),
        PROMPTS,
        micro_batch_size=2,
        policy=Policy(4, 2),
        max_new_tokens=4,
        device=device,
        traced_steps=99,
    )
    list(stream)
    samples = [counter.values for counter in stream.trace.counters if counter.name == REQUESTS]
    assert [(one["in prompts"], one["decoding"], one["waiting"]) for one in samples[:3]] == [
        (2, 0, 5),
        (2, 2, 3),
        (0, 4, 3),
    ]
    assert all(one["decoding"] <= one["places"] == 4 for one in samples)
    assert {span.step for span in stream.trace.spans} >= set(range(1, stream.stats.num_steps + 1))
    rules = stream.trace.metadata["stream"]["rules"]
    assert (rules["joins"], rules["whole_prompts"]) == ("any-time", True)


def test_requests_come_when_they_say_and_nobody_waits_at_work(device):
    """The third comes long after the others have gone, and the fourth, which nobody wants any more, never."""
    limits, arrivals_s = (3, 2, 4, 5), (0.0, 0.05, 1.5, 1e5)
    given = zip(PROMPTS[:4], limits, arrivals_s, strict=True)
    asked = [engine.GenerationRequest(prompt, limit, arrival_s=when_s) for prompt, limit, when_s in given]
    stream = engine.stream(make("mixtral"), asked, policy=Policy(4, 2), device=device, traced_steps=99)
    stream.cancel(3)
    found = outputs_of(stream)
    assert [found[i].sequence for i in range(3)] == [
        alone("mixtral", one.prompt, one.max_new_tokens) for one in asked[:3]
    ]
    assert (found[3].sequence, found[3].error) == ([], "cancelled")
    record = msgspec.convert(stream.trace.metadata["stream"], StreamRecord)
    assert [one.request.arrival_ns / 1e9 for one in record.requests] == pytest.approx(arrivals_s[:3], abs=0.05)
    assert [one.times.num_tokens for one in record.requests] == [3, 2, 4]
    assert [one.arrival_ns for one in stream.stats.times] == [round(when_s * 1e9) for when_s in arrivals_s[:3]]
    (late,) = (step for step in record.steps if 2 in step.composition.entered)
    assert late.begun_ns >= 1.4e9
    assert late.waited_ns > 1e9
    assert max(stream.trace.busy_ns().values()) < stream.trace.makespan_ns - late.waited_ns + 1e7, "waiting is no work"


def test_a_trace_ends_where_it_is_told_to(device):
    stream = engine.stream(
        make("mixtral"), PROMPTS, policy=Policy(4, 2), max_new_tokens=9, device=device, traced_steps=2
    )
    list(stream)
    assert {span.step for span in stream.trace.spans} == {1, 2}
    assert stream.stats.num_steps > 9


@pytest.mark.exhaustive
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads what Linux says of a process")
def test_memory_stays_what_it_is_however_many_requests_come(device):
    def anonymous_bytes():
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return 1024 * int(status.partition("RssAnon:")[2].split()[0])

    prompts, held = make_prompts(*(1 + i % 4 for i in range(2_000))), []
    for output in engine.stream(make("mixtral"), prompts, policy=Policy(32, 8), max_new_tokens=3, device=device):
        assert output.error == ""
        if (len(held) + 1) % 500 == 0:
            gc.collect()
        held.append(anonymous_bytes())
    assert len(held) == 2_000
    assert held[-1] - held[499] < 8 << 20


@pytest.mark.parametrize("name", MIXING)
def test_the_plan_holds_the_peak_of_the_device(name, tmp_path):
    model = make.__wrapped__(
        "mixtral", dtype=torch.float32, hidden_size=128, intermediate_size=48, num_hidden_layers=4,
        num_local_experts=8, num_attention_heads=8, head_dim=16,
    )  # fmt: skip
    model.config.save_pretrained(tmp_path)
    planned = Model.load(tmp_path)
    schedule, policy = policy_of(name, 3, 3)
    lengths, new = [12] * 14, 8
    shape = policy.shape(schedule, planned, 4).beside_prompts(1)
    prompts, decoding = MicroBatch(3, 36, 3 * 12**2, 12), MicroBatch(3, 36, 3 * 12**2, 12)
    plan = plan_memory(schedule, shape, policy, planned, Batch((prompts, *(decoding,) * 3), 0, new)).peak_bytes()
    with EmulatedDevice(None, None, 1 << 30) as device:
        stream = engine.stream(model, make_prompts(*lengths), schedule, policy, max_new_tokens=new, device=device)
        list(stream)
    assert stream.stats.peak_bytes["device"] <= plan["device"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"schedule": "flexgen"}, "flexgen: its steps cannot carry prompts beside decode; take cgopipe or hybrid"),
        ({"policy": Policy(4, 2, attention="gpu", kv_on_device=0.5)}, "kv_on_device: 0.5 in a stream"),
        ({"policy": Policy(4, 2, attention_on_device=0.5)}, "attention_on_device: 0.5 in a stream"),
        ({"num_prompts": 0}, "num_prompts: 0"),
        ({"priority": "shortest"}, "priority: 'shortest' is not allowed; give arrival or longest"),
        ({"num_beams": 2}, "num_beams: 2 asks for beam search"),
        ({"max_new_tokens": 0}, "max_new_tokens: 0"),
    ],
)
def test_refused_with_the_reason(options, told, device):
    with pytest.raises(InputError, match=told):
        engine.stream(make("mixtral"), PROMPTS, device=device, **options)
    assert device.usage.current_bytes == 0


def test_no_requests_are_refused(device):
    with pytest.raises(InputError, match="requests: there is none"):
        engine.stream(make("mixtral"), [], device=device)
