"""The public call: what it returns, what it refuses, what it leaves behind when something breaks."""

import _thread
import threading

import pytest
import torch
from covering import covering
from engine_models import PROMPTS, VOCAB, make, reference

import engine
from engine.device import EmulatedDevice
from engine.device.emulated import EmulatedLane
from engine.device.ledger import DeviceOutOfMemory
from engine.lanes.executor import TaskError
from engine.tasks import RunContext
from sim.cost import Cost
from sim.problem import Model, Policy
from sim.schedule import CGOPipe, LaneKind, Place, Schedule, by_name, registered
from sim.schedule.systems.flexgen_c import FlexGenC
from sim.simulation import Simulation
from traces.errors import InputError
from traces.trace import MEMORY, NONE

NEW = 6


@pytest.fixture
def device():
    with EmulatedDevice(None, None, 1 << 30) as made:
        yield made


def of_lanes(pairs):
    lanes = {}
    for lane, key in pairs:
        lanes.setdefault(lane, []).append(key)
    return lanes


# what comes back ---------------------------------------------------------------------------------------------------


def test_result_says_what_happened(device):
    result = engine.run(make("mixtral"), PROMPTS, micro_batch_size=2, max_new_tokens=NEW, device=device)
    stats = result.stats
    assert stats.generated_tokens == len(PROMPTS) * NEW
    assert stats.tokens_per_s == pytest.approx(stats.generated_tokens / (stats.prefill_s + stats.decode_s))
    assert set(stats.busy_s) == {"GPU", "CPU", "H2D", "D2H", "PIN"}
    assert all(0 < seconds <= stats.prefill_s + stats.decode_s for seconds in stats.busy_s.values())
    assert all(stats.peak_bytes[tier] > 0 for tier in ("device", "host", "pinned"))
    assert result.texts is None
    assert result.trace.origin == "emulated device"


@pytest.mark.parametrize("name", registered())
def test_simulator_and_engine_do_the_same_tasks_in_the_same_order_on_every_lane(name, tmp_path):
    model, schedule = make("mixtral"), by_name(name)
    policy = Policy.usual(schedule, len(PROMPTS), 2)
    result = engine.run(model, PROMPTS, schedule, policy, max_new_tokens=NEW)
    model.config.save_pretrained(tmp_path)
    shape = policy.shape(schedule, Model.load(tmp_path))
    simulated = []
    Simulation(
        schedule.steps(shape, 0, NEW),
        lambda task: Cost(1000),
        on_task=lambda done: simulated.append((done.task.lane, done.task.key)),
    ).run()
    real = [((span.lane, span.rank), span.key) for lane in result.trace.lanes() for span in result.trace.spans_of(lane)]
    assert of_lanes(real) == {(lane.kind.value, lane.rank): keys for lane, keys in of_lanes(simulated).items()}


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("family", ["mixtral", "glm4_moe"])
def test_the_engines_pipeline_is_the_simulators(family, share, device, tmp_path):
    model = make(family)
    model.config.save_pretrained(tmp_path)
    for name in registered():
        schedule = by_name(name)
        if share and schedule.system.streams_non_experts:
            continue
        policy = Policy.usual(schedule, 7, 2, experts_on_device=share)
        run = RunContext.of(model, schedule, policy, device, None)
        assert run.shape(4) == policy.shape(schedule, Model.load(tmp_path)), name


class ShortSighted(CGOPipe):
    """A schedule nobody registered: CGOPipe's pages, but no micro-batch runs ahead."""

    name = "short-sighted"

    def decode(self, shape, step, more):
        yield from FlexGenC().decode(shape, step, more)


def test_a_made_up_schedule_runs(device):
    model = make("qwen3_moe")
    result = engine.run(model, PROMPTS, ShortSighted(), micro_batch_size=3, max_new_tokens=NEW, device=device)
    assert result.sequences == reference(model, PROMPTS, 3, NEW)


@pytest.mark.parametrize(("family", "path"), [("mixtral", "kernel"), ("gpt_oss", "own"), ("deepseek_v3", "device")])
def test_which_attention_ran(family, path):
    stats = engine.run(make(family), PROMPTS, micro_batch_size=3, max_new_tokens=NEW).stats
    calls = 3 * 3 * (NEW - 1)
    assert stats.kernel_attention_calls == (calls if path == "kernel" else 0)
    assert stats.own_attention_calls == (calls if path == "own" else 0)


def test_prefill_moves_hidden_states_out_and_in_and_keys_and_values_out():
    trace = engine.run(make("mixtral"), PROMPTS, micro_batch_size=2, max_new_tokens=2).trace
    moved = {}
    for span in trace.spans:
        if span.step == 0 and span.op in ("LoadHidden", "StoreHidden", "StoreKV"):
            moved.setdefault(span.op, []).append(span.bytes)
    tokens = 2 * 12 + 2 * 7 + 2 * 5 + 1 * 3  # those of similar length together
    assert sum(moved["LoadHidden"]) == sum(moved["StoreHidden"]) == 2 * tokens * 32 * 4
    assert sum(moved["StoreKV"]) == 3 * tokens * 2 * 2 * 8 * 4


class _DeadLane(EmulatedLane):
    """Copies arrive as zeros."""

    def copy_h2d(self, dst, src, *, pinned=True):
        dst.zero_()

    copy_d2h = copy_h2d


class _DeadLink(EmulatedDevice):
    def __init__(self, dead):
        super().__init__(None, None, 1 << 30)
        self.dead = dead

    def open_lane(self, kind):
        return (_DeadLane if kind is self.dead else EmulatedLane)(self, kind)


@pytest.mark.parametrize("dead", [LaneKind.H2D, LaneKind.D2H, None])
@pytest.mark.parametrize("schedule", ["cgopipe", "flexgen"])
def test_only_copies_carry_data_over_the_link(schedule, dead):
    model = make("mixtral")
    policy = Policy.usual(by_name(schedule), len(PROMPTS), 2, experts_on_device=1.0)
    result = engine.run(model, PROMPTS, schedule, policy, max_new_tokens=NEW, device=_DeadLink(dead))
    assert (result.sequences == reference(model, PROMPTS, 2, NEW)) == (dead is None)


# what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "told"),
    [
        ({"num_beams": 4}, "num_beams: 4 asks for beam search"),
        ({"num_return_sequences": 2}, "repeat the prompt"),
        ({"penalty_alpha": 0.5}, "contrastive search"),
        ({"max_length": 7}, "give max_new_tokens"),
        ({"max_new_tokens": 0}, "max_new_tokens: 0"),
        ({"schedule": "cgopip"}, "did you mean cgopipe"),
        ({"device": "npu"}, "device: 'npu' is not known"),
        ({"micro_batch_size": 0}, "micro-batch-size"),
        ({"policy": Policy(4, 2, kv_on_device=1.0)}, "kv_on_device"),
        ({"policy": Policy(4, 2, attention="gpu"), "schedule": "flexgen-c"}, "attention: gpu is not what flexgen-c"),
    ],
)
def test_refused_with_the_reason(kwargs, told):
    with pytest.raises(InputError, match=told):
        engine.run(make("mixtral"), PROMPTS, **{"max_new_tokens": NEW, **kwargs})


@pytest.mark.parametrize(
    ("prompts", "told"),
    [
        ([], "the list is empty"),
        ([[3, 4], []], "prompt 1 is empty"),
        ([[3, VOCAB]], "vocabulary ends at 127"),
        ([[3, -1]], "token ids"),
        ([[3]] * 2 + [[5] * 60], "prompt 2 has 60 tokens.*64 positions"),
        (["text"], "no tokenizer"),
    ],
)
def test_prompts_that_cannot_be_run(prompts, told):
    with pytest.raises(InputError, match=told):
        engine.run(make("mixtral"), prompts, max_new_tokens=NEW)


def test_experts_that_cannot_be_split_are_refused():
    with pytest.raises(InputError, match="cannot be split"):
        engine.run(make("dbrx"), PROMPTS, policy=Policy(4, 2, experts_on_device=0.5), max_new_tokens=NEW)


def test_a_dense_model_is_refused():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    with pytest.raises(InputError, match="no routed experts"):
        engine.run(LlamaForCausalLM(config), [[3]])


# what breaks -------------------------------------------------------------------------------------------------------


def fail_at(model, call, error):
    """Lets layer 1 raise at its n-th call."""
    calls = []

    def hook(*_):
        calls.append(1)
        if len(calls) == call:
            raise error

    return model.model.layers[1].mlp.register_forward_pre_hook(hook)


@pytest.mark.parametrize(("call", "error"), covering([1, 3, 6, 11], [ValueError("broken"), SystemExit(1)]), ids=repr)
def test_a_failing_layer_ends_the_run_and_leaves_nothing_behind(device, call, error):
    model = make("mixtral")
    before, parameters = threading.active_count(), dict(model.named_parameters())
    handle = fail_at(model, call, error)
    try:
        with pytest.raises(TaskError, match=r"task PostAttn \(step ., layer 1, micro-batch .\) on lane GPU") as caught:
            engine.run(model, PROMPTS, micro_batch_size=2, max_new_tokens=NEW, device=device)
    finally:
        handle.remove()
    assert caught.value.__cause__ is error
    assert threading.active_count() == before
    assert device.usage.current_bytes == device.pinned.usage.current_bytes == 0
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    result = engine.run(model, PROMPTS, micro_batch_size=2, max_new_tokens=NEW, device=device)
    assert result.sequences == reference(model, PROMPTS, 2, NEW)


@pytest.mark.parametrize("heads", [1, 9], ids=["in prefill", "in decode"])
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c(device, heads):
    model, done = make("mixtral"), []

    def interrupt(tokens):
        done.append(tokens)
        if len(done) == heads:
            _thread.interrupt_main()

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        engine.run(model, PROMPTS, micro_batch_size=2, max_new_tokens=30, device=device, progress=interrupt)
    assert len(done) < 4 * 30
    assert threading.active_count() == before
    assert device.usage.current_bytes == 0
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_out_of_device_memory_names_the_tensor_and_the_plan():
    with (
        EmulatedDevice(None, None, 60_000) as small,
        pytest.raises(
            DeviceOutOfMemory, match=r"needs \d+ bytes of device memory.*the plan: schedule cgopipe, 4 micro"
        ),
    ):
        engine.run(make("mixtral"), PROMPTS, micro_batch_size=2, max_new_tokens=NEW, device=small)
    assert small.usage.current_bytes == 0


def test_out_of_device_memory_in_decode_names_the_task_too():
    model, policy = make("mixtral"), Policy(7, 2, attention="gpu", kv_on_device=1.0)
    with EmulatedDevice(None, None, 1 << 30) as large:
        engine.run(model, PROMPTS, policy=policy, max_new_tokens=1, device=large)
        enough_for_prompts = large.usage.peak_bytes
    with EmulatedDevice(None, None, enough_for_prompts) as small, pytest.raises(DeviceOutOfMemory) as caught:
        engine.run(model, PROMPTS, policy=policy, max_new_tokens=NEW, device=small)
    assert caught.value.__notes__[0].startswith("in task ")
    assert small.usage.current_bytes == 0


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_cache_on_the_device_is_given_back(share):
    policy = Policy(7, 2, attention="gpu", kv_on_device=share)
    with EmulatedDevice(None, None, 1 << 30) as device:
        engine.run(make("mixtral"), PROMPTS, policy=policy, max_new_tokens=NEW, device=device)
        assert device.usage.current_bytes == 0


class Racing(CGOPipe):
    """Forgets the weights of layer 1 in decode."""

    name = "racing"

    def load_pages(self, shape, step, layer, j):
        if layer != 1:
            yield from super().load_pages(shape, step, layer, j)


def test_a_schedule_that_forgets_weights_is_found_out():
    with pytest.raises(TaskError, match="page 0 of layer 1 is not in the device when it is used"):
        engine.run(make("mixtral"), PROMPTS, Racing(), micro_batch_size=2, max_new_tokens=NEW)


def test_registered_schedules_are_schedules():
    assert all(isinstance(schedule, Schedule) for schedule in registered().values())
    assert Place.CPU in by_name("cgopipe").system.attention


def test_half_precision():
    model = make("qwen3_moe", seed=4).to(torch.bfloat16)
    try:
        result = engine.run(model, PROMPTS, micro_batch_size=2, max_new_tokens=NEW)
        expected = reference(model, PROMPTS, 2, NEW)
        pairs = [pair for rows in zip(result.sequences, expected, strict=True) for pair in zip(*rows, strict=True)]
        same = sum(one == other for one, other in pairs)
        assert same / (len(PROMPTS) * NEW) > 0.7
    finally:
        make.cache_clear()


def test_a_cache_of_another_width_is_refused():
    with pytest.raises(InputError, match="kv_bits: the engine keeps the KV cache at the model's own width"):
        engine.run(make("mixtral"), PROMPTS, policy=Policy(7, 2, kv_bits=8.0), max_new_tokens=2)


def test_the_trace_shows_what_each_memory_held():
    """All tiers from the first task on; peaks are those in the statistics; the device gives activations back."""
    result = engine.run(make("mixtral"), PROMPTS, "cgopipe", micro_batch_size=2, max_new_tokens=4, device="emulated")
    counters = [counter for counter in result.trace.counters if counter.name == MEMORY]
    device = [counter.values["device"] for counter in counters if counter.rank == 0]
    host = [counter.values for counter in counters if counter.rank == NONE]
    assert max(device) == result.stats.peak_bytes["device"]
    assert max(values["host"] for values in host) == result.stats.peak_bytes["host"]
    assert max(values["pinned"] for values in host) == result.stats.peak_bytes["pinned"] > 0
    assert all(values["host"] >= values["pinned"] for values in host)
    assert [counter.time_ns for counter in counters] == sorted(counter.time_ns for counter in counters)
    assert counters[0].time_ns == 0
    assert device[-1] < max(device)
