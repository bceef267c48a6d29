"""A schedule's own tasks in JAX: the engine's tokens, the order of issue, and no more on the device than slots."""

import json
from contextlib import closing
from dataclasses import replace

import jax
import numpy as np
import pytest
from engine_models import make, make_prompts
from schemas import faults
from wide_models import as_run

import engine
from engine.calibration import described
from engine.cli import main
from engine.device import OutOfMemory, XlaDevice, make_device
from engine.model import Anatomy
from engine.running.xla import XlaModel, prove
from engine.running.xla.host_cache import HostCache
from engine.running.xla.model import LayerLayout, LayerParameters, ParameterPiece, XlaFamily
from engine.running.xla.report import print_proof
from engine.running.xla.slots import Slots
from sim.cost import plan_memory
from sim.problem import Policy
from sim.schedule import Access, LaneKind, Tier, by_name, layout_of
from traces.errors import InputError
from traces.files import read_trace, write_trace
from validation.replay import replay_trace

jax.config.update("jax_disable_most_optimizations", True)  # half the time to compile, and nothing else is asked here

NEW = 4
LENGTHS = (9, 4, 9, 6, 9)  # three micro-batches, two widths
MIXED = {"attention_on_device": 0.34}  # one of them attends on the device
ONE_WIDTH = (9, 9, 4, 9)


@pytest.fixture(scope="module")
def device():
    return XlaDevice()


def policy_of(schedule, lengths, **places):
    size = len(lengths) if by_name(schedule).system.one_batch else 2
    return Policy.usual(by_name(schedule), len(lengths), size, **places)


def wanted(model, prompts, schedule, policy):
    return engine.run(model, prompts, schedule, policy, max_new_tokens=NEW, device="emulated").sequences


@pytest.fixture(scope="module")
def staged(device):
    """Mixtral by CGOPipe: pages are staged, the host attends, and for one micro-batch the device."""
    policy = policy_of("cgopipe", LENGTHS, **MIXED)
    with closing(XlaModel(make("mixtral"), by_name("cgopipe"), policy, device)) as model:
        yield model, model.generate(make_prompts(*LENGTHS), NEW)


def test_tokens_are_the_engines(staged):
    policy = policy_of("cgopipe", LENGTHS, **MIXED)
    assert staged[1].sequences == wanted(make("mixtral"), make_prompts(*LENGTHS), "cgopipe", policy)


def test_weights_come_from_pinned_host_and_the_cache_over_the_link(device):
    """Half of the experts stay on the device; attention there reads a cache that comes and goes."""
    model, prompts, schedule = make("qwen3_moe"), make_prompts(*ONE_WIDTH), by_name("flexgen")
    policy = policy_of("flexgen", ONE_WIDTH, pin_weights=1, experts_on_device=0.5)
    with closing(XlaModel(model, schedule, policy, device)) as placed:
        result = placed.generate(prompts, NEW)
        kinds = {page.sharding.memory_kind for layer in placed.weights.layers for page in layer.pages}
    assert result.sequences == wanted(model, prompts, "flexgen", policy)
    assert kinds == {"pinned_host"}
    assert {"LoadKV", "StoreKV", "LoadWeights"} <= result.moved_bytes.keys()
    assert device.pinned.usage.current_bytes == 0


CASES = [
    ("mixtral", "cgopipe", {"pin_weights": 1, "pages": 5}),
    ("mixtral", "cgopipe", {"attention": "gpu"}),
    ("mixtral", "cgopipe", {"attention": "gpu", "kv_on_device": 1.0}),
    ("mixtral", "cgopipe", {"experts_on_device": 1.0}),
    ("mixtral", "cgopipe", {"stream_non_experts": True}),
    ("mixtral", "cgopipe", {"pages": 7, "deal_experts": True, "experts_on_device": 0.5}),
    ("mixtral", "flexgen", {"kv_on_device": 1.0}),
    *[(family, name, {}) for family in ("mixtral", "qwen3_moe") for name in ("flexgen-c", "fastdecode", "zero")],
    *[(family, "accelerate", {}) for family in ("mixtral", "qwen3_moe")],
]


@pytest.mark.exhaustive
@pytest.mark.parametrize(("family", "schedule", "places"), CASES)
def test_tokens_are_the_engines_everywhere(device, family, schedule, places):
    policy, prompts = policy_of(schedule, LENGTHS, **places), make_prompts(*LENGTHS)
    with closing(XlaModel(make(family), by_name(schedule), policy, device)) as model:
        assert model.generate(prompts, NEW).sequences == wanted(make(family), prompts, schedule, policy)
        fewer = model.generate(prompts[:3], NEW).sequences  # fewer micro-batches, so other pages
    assert fewer == wanted(make(family), prompts[:3], schedule, policy)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "changes", [{"decoder_sparse_step": 2}, {"tie_word_embeddings": True, "attention_bias": True}, {"eos": 37}]
)
def test_odd_models_too(device, changes):
    policy, prompts, model = policy_of("cgopipe", LENGTHS), make_prompts(*LENGTHS), make("qwen3_moe", **changes)
    with closing(XlaModel(model, by_name("cgopipe"), policy, device)) as placed:
        assert placed.generate(prompts, NEW).sequences == wanted(model, prompts, "cgopipe", policy)


# order and trace ----------------------------------------------------------------------------------------------------


def test_each_lane_did_what_the_simulator_issues_in_its_order(staged):
    policy, trace = policy_of("cgopipe", LENGTHS, **MIXED), staged[1].trace
    issued = list(by_name("cgopipe").tasks(policy.shape(by_name("cgopipe"), described(make("mixtral"))), NEW))
    for kind in ("H2D", "D2H", "GPU", "CPU", "PIN"):
        did = [span.key for span in trace.spans_of((kind, 0))]
        assert did == [task.key for task in issued if task.lane.kind is LaneKind(kind)]


def test_a_trace_is_read_and_replayed_as_any_other(staged, tmp_path):
    write_trace(staged[1].trace, tmp_path / "run.json.gz")
    trace = read_trace(tmp_path / "run.json.gz")
    assert trace.origin == "XLA (cpu)"
    check = replay_trace(trace).order_check
    assert (check.tasks, check.absent) == (len(trace.spans), 0)
    assert sum(span.bytes for span in trace.spans if span.op == "LoadWeights") == staged[1].moved_bytes["LoadWeights"]


# memory -------------------------------------------------------------------------------------------------------------


def test_the_device_holds_no_more_pages_than_slots(staged, device, monkeypatch):
    """Counted in what JAX itself says is alive, whenever something was just brought."""
    policy = policy_of("cgopipe", LENGTHS, **MIXED)
    (page,) = {page.shape for layer in staged[0].weights.layers for page in layer.pages}
    put, alive = XlaDevice.put, []

    def counted(self, *args):
        made = put(self, *args)
        live = [one for one in jax.live_arrays() if one.shape == page and not one.is_deleted()]
        alive.append([sum(one.sharding.memory_kind == kind for one in live) for kind in ("device", "pinned_host")])
        return made

    monkeypatch.setattr(XlaDevice, "put", counted)
    staged[0].generate(make_prompts(*LENGTHS), NEW)
    layout = layout_of(by_name("cgopipe"), policy.shape(by_name("cgopipe"), described(make("mixtral"))))
    most = [max(column) for column in zip(*alive, strict=True)]
    assert most == [layout.num_slots("weights"), layout.num_slots("pinned")]


def test_the_device_holds_no_more_than_planned(staged):
    policy, known = policy_of("cgopipe", LENGTHS, **MIXED), described(make("mixtral"))
    batch = as_run(LENGTHS, 2, NEW)
    plan = plan_memory(by_name("cgopipe"), policy.shape(by_name("cgopipe"), known), policy, known, batch)
    assert staged[1].peak_bytes["device"] <= plan.peak_bytes()["device"]


def test_a_batch_leaves_nothing_but_the_weights(staged, device):
    held = device.memory.holders
    assert set(held) <= {"embedding and head", "non-expert weights", "resident experts"}
    assert device.pinned.usage.current_bytes == 0


def test_a_device_that_is_too_small_says_so():
    with pytest.raises(OutOfMemory, match="device memory"):
        XlaModel(make("mixtral"), by_name("cgopipe"), policy_of("cgopipe", LENGTHS), XlaDevice(1000))


@pytest.mark.parametrize("tier", [Tier.DEVICE, Tier.PINNED])
def test_what_is_put_is_a_copy_in_the_memory_of_its_tier(device, tier):
    block = np.zeros(4112, np.float32)
    given = block[-block.ctypes.data % 64 // 4 :]  # so aligned that it could be taken over as it is
    there = device.put(given, tier)
    back = device.put(there, tier)
    given[:] = 1
    assert not np.asarray(there).any()
    assert there.sharding.memory_kind == ("device" if tier is Tier.DEVICE else "pinned_host")
    assert there.unsafe_buffer_pointer() != back.unsafe_buffer_pointer()


def test_a_slot_with_something_else_is_not_read(device):
    shape = policy_of("cgopipe", LENGTHS).shape(by_name("cgopipe"), described(make("mixtral")))
    slots = Slots(layout_of(by_name("cgopipe"), shape), device)
    with closing(slots):
        slots.write(Access("hidden", 0, (1, 2)), (device.put(np.zeros(3, np.float32)),))
        slots.read(Access("hidden", 0, (1, 2)))
        with pytest.raises(RuntimeError, match=r"hidden: \(1, 3\) was to be read where \(1, 2\) is"):
            slots.read(Access("hidden", 0, (1, 3)))
        with pytest.raises(RuntimeError, match="where nothing is"):
            slots.read(Access("hidden", 1, (1, 2)))
    assert "hidden" not in device.memory.holders


# the proof ----------------------------------------------------------------------------------------------------------


def test_a_proof_tells_what_its_schema_says(device, capsys):
    policy, prompts = policy_of("cgopipe", LENGTHS, **MIXED), make_prompts(*LENGTHS)
    proof = prove(make("mixtral"), prompts, by_name("cgopipe"), policy, NEW, device)
    assert proof.equal
    value = {"schema": 1, **json.loads(json.dumps(proof.to_dict()))}
    assert faults("jax", value) == []
    assert all(faults("jax", {key: one for key, one in value.items() if key != field}) for field in value)
    assert faults("jax", {**value, "more": 1})
    assert sum(one.tasks for one in proof.ops) == len(proof.result.trace.spans)
    print_proof(replace(proof, differing=(1, 3)))
    assert "tokens equal to the PyTorch engine's: no (3 of 5 requests" in capsys.readouterr().out


@pytest.mark.exhaustive
def test_the_command_proves_and_says_so(tmp_path, capsys):
    trace = tmp_path / "run.json.gz"
    assert main(["jax", "--family", "qwen3_moe", "--max-new-tokens", "3", "--json", "-", "--trace", str(trace)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["tokens_equal"], told["model"]) == (True, "qwen3_moe")
    assert len(read_trace(trace).spans) == sum(one["tasks"] for one in told["ops"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--family olmoe", "--family olmoe: no such family is written in JAX; give mixtral or qwen3_moe"),
        ("--trace run.txt", "--trace run.txt: give a name that ends in .json or .json.gz"),
        ("--schedule hybrid", "jax: hybrid computes experts apart"),
    ],
)
def test_what_the_command_cannot_do_is_one_line(words, message, capsys):
    assert main(["jax", *words.split()]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_a_device_of_jax_is_no_device_of_the_engine():
    with pytest.raises(InputError, match="`python -m engine jax` runs schedules there"):
        make_device("jax")


# parts --------------------------------------------------------------------------------------------------------------


def test_parameters_are_found_across_pages():
    numbers = np.arange(40, dtype=np.float32)
    pieces = (ParameterPiece("experts", (0, 2), (2, 3, 4), 0), ParameterPiece("norm", None, (8,), 28))
    cuts = ((0, 5), (5, 5), (5, 17), (17, 40))
    pages = [jax.numpy.asarray(numbers[start:stop]) for start, stop in cuts]
    resident = {"experts": jax.numpy.full((1, 3, 4), 7.0)}
    layer = LayerParameters(LayerLayout(pieces, cuts, (1,)), resident, pages)
    assert np.array_equal(layer.of_expert("experts", 0), numbers[:12].reshape(3, 4))
    assert np.array_equal(layer.of_expert("experts", 1), np.full((3, 4), 7.0))
    assert np.array_equal(layer.of_expert("experts", 2), numbers[12:24].reshape(3, 4))
    assert np.array_equal(layer["norm"], numbers[28:36])
    assert "norm" in layer
    assert "bias" not in layer


def test_attention_on_the_host_leaves_padding_out():
    drawn = np.random.default_rng(0)
    query, keys, values = (drawn.normal(size=(2, heads, tokens, 8)) for heads, tokens in ((4, 1), (2, 5), (2, 5)))
    cache = HostCache((2, 2, 9, 8), np.float64)
    cache.store(keys, values, 0)
    out = cache.attend(query, 5, np.array([0, 3]), 0.5).reshape(2, 4, 8)
    for row, padding in ((0, 0), (1, 3)):
        for head in range(4):
            scores = keys[row, head // 2, padding:] @ query[row, head, 0] * 0.5
            weights = np.exp(scores) / np.exp(scores).sum()
            assert np.allclose(out[row, head], weights @ values[row, head // 2, padding:], atol=1e-6)


def test_marks_are_reached_in_the_order_of_dispatch(device):
    slow = jax.jit(lambda one: jax.lax.fori_loop(0, 200, lambda _, two: jax.numpy.tanh(two @ two), one))
    given = device.put(np.ones((64, 64), np.float32))
    with device.open_lane(LaneKind.GPU) as lane:
        lane.gave(slow(given))
        first = lane.mark()
        second = lane.mark()  # nothing was given in between
        lane.gave(given)
        third = lane.mark()
        lane.wait(third)
        assert first.settle()
        assert first.time_ns <= second.time_ns <= third.time_ns


def test_a_failed_computation_tells_whoever_waits_for_it(device):
    with device.open_lane(LaneKind.H2D) as lane:
        gone = device.put(np.ones(3, np.float32))
        gone.delete()
        lane.gave(gone)
        with pytest.raises(RuntimeError, match="deleted"):
            lane.wait(lane.mark())


@pytest.mark.parametrize(
    ("family", "schedule", "places", "message"),
    [
        ("olmoe", "cgopipe", {}, "jax: olmoe is not among the families"),
        ("gpt_oss", "cgopipe", {}, "jax: gpt_oss is not among the families"),
        ("mixtral", "hybrid", {}, "jax: hybrid computes experts apart"),
        ("mixtral", "flexgen", {"kv_on_device": 0.5}, "jax: kv_on_device = 0.5: give 0 or 1"),
        ("mixtral", "cgopipe", {"pin_weights": 0.5}, "jax: pin_weights = 0.5: give 0 or 1"),
        ("mixtral", "cgopipe", {"weight_bits": 4.5}, "jax: weight_bits = 4.5: packed experts"),
    ],
)
def test_what_is_not_written_in_jax_is_refused_by_name(device, family, schedule, places, message):
    with pytest.raises(InputError, match=message):
        XlaModel(make(family), by_name(schedule), policy_of(schedule, LENGTHS, **places), device)


@pytest.mark.parametrize(
    ("prompts", "new", "message"),
    [
        ([], 4, "prompts: 0 for a policy whose batch is 5"),
        ([[1]] * 6, 4, "prompts: 6 for a policy whose batch is 5"),
        ([[1], []], 4, "prompt 1 is empty"),
        (["text"], 4, "prompt 0 is text, but there is no tokenizer"),
        ([[1] * 62], 4, "prompt 0 has 62 tokens"),
        ([[1]], 0, "max_new_tokens"),
    ],
)
def test_prompts_are_checked_as_the_engine_checks_them(staged, prompts, new, message):
    with pytest.raises(InputError, match=message):
        staged[0].generate(prompts, new)


def test_a_sliding_window_is_refused():
    model = make("mixtral", sliding_window=8)
    with pytest.raises(InputError, match="a sliding window of 8 tokens"):
        XlaFamily.of(model, Anatomy.of(model))
