"""Host memory: weights in place, and what goes over the link from where: page-locked, in one piece, without growth."""

import contextlib
import json
import math
import subprocess
import sys
import threading
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from covering import covering
from engine_models import PROMPTS, make, reference
from torch import nn

import engine
from engine.device import EmulatedDevice, LaneContext, Ledger, PinnedOutOfMemory
from engine.device.accelerator.torch_runtime import TorchRuntime
from engine.generation import load_model
from engine.memory import STAGING, HostCopy, HostPiece, HostWeights, StreamedLayer, WeightStream, placed
from engine.model import OwnedParameter
from engine.tasks import RunContext
from engine.tasks.batch import TaskPerformer
from sim.problem import Policy
from sim.schedule import Op, Place, Task, Tier, by_name, registered
from traces.errors import InputError

NEW = 4
FEW, ALL = 4, len(PROMPTS)
HELPERS = Path(__file__).parents[1] / "helpers"
KV_OPS = (Op.LOAD_KV, Op.STORE_KV)
WEIGHTS = (Op.LOAD_WEIGHTS, Op.LOAD_WEIGHTS_PAGEABLE)
PLACES = [{}, {"attention": "gpu"}, {"pin_weights": 0.5}, {"pin_weights": 1.0}]


class Copied(NamedTuple):
    """A copy over the link: for which task, from or to which bytes of the host."""

    task: Task
    pinned: bool
    host: torch.Tensor

    def lies_in(self, locked: dict[int, int]) -> bool:
        first, last = self.host.data_ptr(), self.host.data_ptr() + self.host.nbytes
        return any(start <= first and last <= start + length for start, length in locked.items())


class WatchedDevice(EmulatedDevice):
    """Notes what is page-locked, and what is allocated; a limit of the former may be set."""

    def __init__(self) -> None:
        self.locked: dict[int, int] = {}
        self.times_locked = 0
        self.running = threading.local()
        self.locked_in: list[int | None] = []
        """In which step of a task, if in one."""
        self.most_locked_bytes: float = math.inf
        self.allocated: list[str] = []
        super().__init__(None, None, 1 << 30)

    def allocate(self, name, shape, dtype):
        self.allocated.append(name)
        return super().allocate(name, shape, dtype)

    def _register(self, address, num_bytes):
        if sum(self.locked.values()) + num_bytes > self.most_locked_bytes:
            raise PinnedOutOfMemory("the system refuses")
        self.locked[address] = num_bytes
        self.times_locked += 1
        self.locked_in.append(getattr(self.running, "step", None))

    def _unregister(self, address):
        del self.locked[address]


@contextlib.contextmanager
def watched_copies(monkeypatch, device):
    """Yields the copies of all tasks that ran meanwhile; a copy that says it is page-locked must be."""
    copies, running, perform = [], threading.local(), TaskPerformer.__call__

    def performing(self, lane, task):
        running.task, device.running.step = task, task.step
        return perform(self, lane, task)

    def watched(copy, host_is):
        def copying(self, dst, src, *, pinned=True):
            copied = Copied(running.task, pinned, (dst, src)[host_is])
            copies.append(copied)
            assert not pinned or (copied.host.is_contiguous() and copied.lies_in(device.locked)), running.task
            copy(self, dst, src, pinned=pinned)

        return copying

    with monkeypatch.context() as patches:
        patches.setattr(TaskPerformer, "__call__", performing)
        patches.setattr(LaneContext, "copy_h2d", watched(LaneContext.copy_h2d, 1))
        patches.setattr(LaneContext, "copy_d2h", watched(LaneContext.copy_d2h, 0))
        yield copies


def policy_for(schedule, places, requests=ALL):
    """Or skips the test."""
    policy = Policy.usual(schedule, requests, 2, **places)
    try:
        policy.check_places(schedule)
    except InputError:
        pytest.skip("not where this schedule works")
    return policy


def may_be_pageable(task, run):
    """Whether the schedule's system copies this from or to memory that is not page-locked."""
    if task.op in WEIGHTS:
        return task.op is Op.LOAD_WEIGHTS_PAGEABLE
    if task.op is Op.FETCH_EXPERTS:
        return run.policy.pin_weights < 1
    if task.op in KV_OPS:
        return not run.schedule.system.pins_kv
    buffers = run.layout(run.policy.num_micro_batches).buffers
    on_host = {
        Op.OFFLOAD_QKV: "qkv on host",
        Op.STORE_HIDDEN: "hidden on host",
        Op.LOAD_HIDDEN: "attention on host" if task.step else "hidden on host",
        Op.OFFLOAD_TOKENS: "routed on host",
        Op.LOAD_OUTPUT: "output on host",
    }
    return buffers[on_host[task.op]].tier is not Tier.PINNED


@pytest.mark.parametrize(
    ("family", "case"), covering(["mixtral", "gpt_oss", "qwen2_moe"], list(product(registered(), PLACES))), ids=str
)
def test_copies_are_page_locked_where_the_schedule_says_so(family, case, monkeypatch):
    (name, places), model = case, make(family)
    schedule = by_name(name)
    policy, few, new = policy_for(schedule, places, FEW), PROMPTS[:FEW], 3
    with WatchedDevice() as device, watched_copies(monkeypatch, device) as copies:
        result = engine.run(model, few, schedule, policy, max_new_tokens=new, device=device)
        assert not device.locked
    assert result.sequences == reference(model, few, 2, new)
    run = RunContext.of(model, schedule, policy, device, None)
    assert {one.task.op for one in copies if not one.pinned and not may_be_pageable(one.task, run)} == set()
    assert any(one.pinned for one in copies) or not policy.pin_weights
    if family == "mixtral":  # others have masks, which the first step of decode brings
        assert set(device.locked_in) <= {None, 0}


APART = {"attention": "gpu", "kv_on_device": 1.0, "pin_weights": 1.0}
"""Nothing but experts exchanges anything with the host."""

EVERYWHERE = {"experts_on_device": 0.25, "experts_on_host": 0.25, "experts_fetched": 0.25}


@pytest.mark.parametrize("prefill", ["cpu", "gpu"])
def test_room_for_what_experts_exchange_is_locked_before_the_first_task(prefill, monkeypatch):
    """In decode it is of the block that was promised; prompts get more where their experts are apart too."""
    model, schedule = make("mixtral"), by_name("hybrid")
    policy = Policy.usual(schedule, len(PROMPTS), len(PROMPTS), **APART, **EVERYWHERE, prefill_experts=prefill)
    with WatchedDevice() as device, watched_copies(monkeypatch, device) as copies:
        result = engine.run(model, PROMPTS, schedule, policy, max_new_tokens=NEW, device=device)
    assert {Op.OFFLOAD_TOKENS, Op.LOAD_OUTPUT, Op.FETCH_EXPERTS} <= {one.task.op for one in copies if one.pinned}
    assert set(device.locked_in) == {None}
    layers = model.config.num_hidden_layers
    assert prefill == "cpu" or device.times_locked == 1 + layers, "one block is promised, and each layer has its own"
    assert result.trace.metadata["host_memory"]["expert exchange"]["pageable"] == 0


def test_a_cache_that_the_model_reads_itself_crosses_the_link_in_one_piece(monkeypatch):
    model = make("deepseek_v3")
    with WatchedDevice() as device, watched_copies(monkeypatch, device) as copies:
        result = engine.run(model, PROMPTS, micro_batch_size=2, max_new_tokens=NEW, device=device)
    assert result.sequences == reference(model, PROMPTS, 2, NEW)
    assert all(one.pinned for one in copies if one.task.step and one.task.op is Op.LOAD_HIDDEN)


@pytest.mark.parametrize("name", ["cgopipe", "flexgen"])
def test_buffers_of_the_cache_get_their_room_once(name):
    schedule = by_name(name)
    policy = Policy.usual(schedule, len(PROMPTS), 2, attention="gpu")
    with WatchedDevice() as device:
        engine.run(make("mixtral"), PROMPTS, schedule, policy, max_new_tokens=12, device=device)
    assert sum("kv buffer" in name for name in device.allocated) == 4  # keys and values, in turns


def test_batches_share_what_is_locked():
    policy, times = Policy(2, 1), []
    with WatchedDevice() as device:
        for prompts in (PROMPTS[:2], PROMPTS[:2] * 4):
            device.times_locked = 0
            engine.run(make("mixtral"), prompts, policy=policy, max_new_tokens=3, device=device)
            times.append(device.times_locked)
    assert times[0] == times[1] > 0


def test_what_the_system_refuses_to_lock_is_pageable_and_the_trace_says_so():
    policy = Policy(7, 2, attention=Place.GPU)
    with WatchedDevice() as device:
        device.most_locked_bytes = 80_000
        result = engine.run(make("mixtral"), PROMPTS, policy=policy, max_new_tokens=NEW, device=device)
    assert result.sequences == reference(make("mixtral"), PROMPTS, 2, NEW)
    held = result.trace.metadata["host_memory"]
    cache = held["kv cache"]
    assert min(cache["locked"], cache["pageable"], held["staging"]["locked"]) > 0


# weights in place -----------------------------------------------------------------------------------------------------


class MovingDevice(WatchedDevice):
    """Has a memory of its own, as a real device does: what is placed there is no longer the host's tensor."""

    def _placed(self, tensor):
        return tensor.clone()


def snapshot(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_whole(model, before):
    now = dict(model.named_parameters())
    assert list(now) == list(before)
    assert all(torch.equal(now[name], value) for name, value in before.items())


WHAT_STREAMS = [
    ("cgopipe", {}),
    ("cgopipe", {"experts_on_device": 0.5}),
    ("cgopipe", {"experts_on_device": 1.0}),
    ("zero", {"pin_weights": 0.5}),
]


@pytest.mark.parametrize(("name", "places"), WHAT_STREAMS, ids=str)
def test_the_model_is_whole_after_a_run_and_runs_again(name, places):
    model, schedule = make.__wrapped__("mixtral"), by_name(name)
    before, parameters = snapshot(model), dict(model.named_parameters())
    policy = Policy.usual(schedule, len(PROMPTS), 2, **places)
    for _ in range(2):
        with MovingDevice() as device:
            result = engine.run(model, PROMPTS, schedule, policy, max_new_tokens=NEW, device=device)
            assert device.usage.current_bytes == device.pinned.usage.current_bytes == 0
            assert not device.locked
        assert_whole(model, before)
        assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert result.sequences == reference(model, PROMPTS, 2, NEW)


@pytest.mark.parametrize("after_bytes", [0, 20_000, 60_000])
@pytest.mark.parametrize(("name", "places"), WHAT_STREAMS, ids=str)
def test_the_model_is_whole_after_weights_that_could_not_be_locked(name, places, after_bytes):
    model, schedule = make.__wrapped__("mixtral"), by_name(name)
    before = snapshot(model)
    policy = Policy.usual(schedule, len(PROMPTS), 2, **{**places, "pin_weights": 1.0})
    with MovingDevice() as device:
        device.most_locked_bytes = after_bytes
        if places.get("experts_on_device") != 1.0:
            with pytest.raises(PinnedOutOfMemory):
                engine.run(model, PROMPTS, schedule, policy, max_new_tokens=NEW, device=device)
        assert device.usage.current_bytes == device.pinned.usage.current_bytes == 0
        assert not device.locked
    assert_whole(model, before)


def test_a_weight_is_in_one_place_at_a_time():
    model, schedule = make.__wrapped__("mixtral"), by_name("cgopipe")
    with MovingDevice() as device:
        policy = Policy(7, 2, experts_on_device=0.5)
        run = RunContext.of(model, schedule, policy, device, None)
        on_host = [parameter for parameter in model.parameters() if parameter.dim() < 3]
        experts = [parameter for parameter in model.parameters() if parameter.dim() == 3]
        host = HostWeights(device, run.host, run.streamed, policy.locked_bytes)
        device.reserve_pinned({STAGING: WeightStream.planned_staging_bytes(host, run.layout(4))})
        with placed(model, run.anatomy, device, host, run.layout(4)):
            assert all(parameter.numel() == 0 for parameter in on_host)
            assert all(parameter.shape[0] == 2 for parameter in experts)
            assert run.host.usage.current_bytes == sum(parameter.nbytes for parameter in experts)
            blocks = {parameter.untyped_storage().data_ptr() for parameter in experts}
            assert len(blocks) == 3


def test_a_model_that_is_not_in_host_memory_is_refused():
    model = make.__wrapped__("mixtral")
    model.model.layers[1].mlp.to("meta")
    with pytest.raises(InputError, match=r"model: model.layers.1.mlp.* is on meta, .* load it into host memory"):
        engine.run(model, PROMPTS, max_new_tokens=2, device=WatchedDevice())


def test_weights_that_lie_in_place_stay_there():
    model = make.__wrapped__("mixtral")
    places = []
    for name in ("zero", "zero", "cgopipe"):  # what streams with cgopipe comes first in the blocks of zero
        schedule = by_name(name)
        with WatchedDevice() as device:
            policy = Policy.usual(schedule, len(PROMPTS), 7, pin_weights=1.0)
            engine.run(model, PROMPTS, schedule, policy, max_new_tokens=2, device=device)
        places.append([parameter.data_ptr() for parameter in model.parameters()])
    assert places[0] == places[1] == places[2]


def test_parameters_of_two_layers_may_be_one():
    shared = nn.Bilinear(5, 7, 3, bias=False)
    value = shared.weight.detach().clone()
    layer = StreamedLayer.of([HostPiece.of(OwnedParameter(shared, "weight", shared.weight))])
    with WatchedDevice() as device:
        host = HostWeights(device, Ledger("host memory", None), [layer, layer], lambda num_bytes: num_bytes)
        host.take()
        assert all(torch.equal(layer.pieces[0].view(host[i].content), value) for i in range(2))
        host.close()
    assert torch.equal(shared.weight, value)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_only_what_is_not_locked_is_staged(share):
    model = make("mixtral", hidden_size=64, intermediate_size=64)
    policy = Policy(7, 2, pin_weights=share)
    result = engine.run(model, PROMPTS, policy=policy, max_new_tokens=NEW, device=WatchedDevice())
    assert result.sequences == reference(model, PROMPTS, 2, NEW)
    layer_bytes = 4 * 3 * 64 * 64 * 4
    locked = policy.locked_bytes(layer_bytes)
    moved = dict.fromkeys((Op.PIN_WEIGHTS, Op.LOAD_WEIGHTS), 0)
    for span in result.trace.spans:
        if span.op in moved:
            moved[Op(span.op)] += span.bytes
    assert moved[Op.LOAD_WEIGHTS] % layer_bytes == 0
    runs = moved[Op.LOAD_WEIGHTS] // layer_bytes
    assert moved[Op.PIN_WEIGHTS] == (0 if share == 1 else (layer_bytes - locked) * runs)
    described = result.trace.metadata
    assert described["locked_bytes"] == [locked] * 3
    held = described["host_memory"]
    assert held["streamed weights"] == {"locked": 3 * locked, "pageable": 3 * (layer_bytes - locked)}
    assert held["staging"] == {"locked": 0 if share == 1 else layer_bytes - locked, "pageable": 0}


ALLOWANCE_BYTES = 16 * 2**20
"""For what a run takes beside what the plan counts: threads, code, its trace."""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not say what a process takes")
@pytest.mark.parametrize("share", [0.0, pytest.param(1.0, marks=pytest.mark.exhaustive)])
def test_host_memory_holds_one_copy_of_the_weights(share, tmp_path):
    width = {"hidden_size": 256, "intermediate_size": 1024, "head_dim": 64}
    model = make.__wrapped__("mixtral", num_hidden_layers=4, num_local_experts=8, **width)
    layer_bytes = sum(parameter.nbytes for parameter in model.model.layers[0].parameters())
    model.save_pretrained(tmp_path)
    ran = subprocess.run(
        [sys.executable, str(HELPERS / "memory_of_a_run.py"), str(tmp_path), str(share)],
        check=True,
        capture_output=True,
    )
    found = json.loads(ran.stdout)
    counted = found["accounts"]["host"] + found["accounts"]["device"]  # of an emulated device, host memory too
    assert found["accounts"]["host"] < 6 * layer_bytes
    assert found["after"] < counted + ALLOWANCE_BYTES
    assert found["peak"] < counted + layer_bytes + ALLOWANCE_BYTES


# copies inside host memory --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 2**20 + 1, 3 * 2**20])
def test_several_threads_copy_every_byte_and_no_other(threads, size):
    source = torch.arange(size).to(torch.uint8)
    room = torch.full((size + 128,), 255, dtype=torch.uint8)
    with HostCopy(threads) as copy:
        copy(room[64 : 64 + size], source)
    assert torch.equal(room[64 : 64 + size], source)
    assert bool((room[:64] == 255).all())
    assert bool((room[64 + size :] == 255).all())


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int64, torch.bool])
def test_several_threads_copy_what_lies_in_another_order(threads, dtype):
    source = torch.rand(5, 700, 3, 128).mul(100).to(dtype).permute(0, 2, 1, 3)
    room = torch.zeros(5, 3, 800, 128, dtype=dtype)
    with HostCopy(threads) as copy:
        copy(room[:, :, 50:750], source)
    assert torch.equal(room[:, :, 50:750], source)
    assert not room[:, :, :50].any()
    assert not room[:, :, 750:].any()


def test_copies_are_of_one_shape_and_type():
    with HostCopy(1) as copy:
        with pytest.raises(ValueError, match=r"float32 \[1\] cannot be copied to torch.float32 \[2\]: one shape"):
            copy(torch.zeros(2), torch.zeros(1))
        with pytest.raises(ValueError, match="one shape and dtype needed"):
            copy(torch.zeros(2), torch.zeros(2, dtype=torch.int32))
    with pytest.raises(InputError, match="threads of copies = 0"):
        HostCopy(0)


# the type of numbers --------------------------------------------------------------------------------------------------


class OldDevice(EmulatedDevice):
    """Does not compute in bfloat16."""

    def supports(self, dtype):
        return dtype is not torch.bfloat16


def saved(folder, dtype):
    model = make.__wrapped__("mixtral")
    model.to(dtype).save_pretrained(folder)
    return folder


def test_a_type_that_the_device_lacks_becomes_a_safe_one(tmp_path, capfd):
    folder = saved(tmp_path, torch.bfloat16)
    with OldDevice(None, None, 1 << 30) as device:
        model = load_model(folder, device=device)
        said = [line for line in capfd.readouterr().err.splitlines() if "becomes float32" in line]
        assert model.dtype is torch.float32
        assert len(said) == 1
        assert "emulated device does not compute in bfloat16" in said[0]
        assert load_model(folder, "bfloat16", device=device).dtype is torch.bfloat16  # whoever asks for it
        assert "becomes" not in capfd.readouterr().err
        result = engine.run(folder, PROMPTS[:2], micro_batch_size=1, max_new_tokens=2, device=device)
    assert result.trace.metadata["model_config"]["dtype"] == "float32"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_type_that_the_device_has_stays(dtype, tmp_path, capfd):
    folder = saved(tmp_path, dtype)
    with EmulatedDevice(None, None, 1 << 30) as device:
        assert load_model(folder, device=device).dtype is dtype
    assert "becomes" not in capfd.readouterr().err


@pytest.mark.parametrize("native", [True, False])
def test_cuda_tells_what_it_computes_in_and_not_what_it_emulates(native, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    runtime, device = TorchRuntime("cuda"), torch.device("cuda", 0)
    assert runtime.supports(device, torch.bfloat16) is native
    assert runtime.supports(device, torch.float16)
