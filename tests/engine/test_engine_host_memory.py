"""Host memory: weights in place, and what goes over the link from where: page-locked, in one piece, without growth."""

import contextlib
import threading
from typing import NamedTuple

import pytest
import torch
from engine_models import PROMPTS, make, reference

import engine
from engine.device import EmulatedDevice, LaneContext
from engine.tasks import RunContext
from engine.tasks.batch import TaskPerformer
from sim.problem import Policy
from sim.schedule import LaneKind, Op, Task, Tier, by_name, registered
from traces.errors import InputError

NEW = 4
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
    """Notes what is page-locked, and what is allocated."""

    def __init__(self) -> None:
        self.locked: dict[int, int] = {}
        self.ever_locked: dict[int, int] = {}
        self.allocated: list[str] = []
        super().__init__(None, None, 1 << 30)

    def allocate(self, name, shape, dtype):
        self.allocated.append(name)
        return super().allocate(name, shape, dtype)

    def _register(self, address, num_bytes):
        self.locked[address] = num_bytes

    def _unregister(self, address):
        del self.locked[address]


@contextlib.contextmanager
def watched_copies(monkeypatch, device):
    """Yields the copies of all tasks that ran meanwhile; a copy that says it is page-locked must be."""
    copies, running, perform, copy = [], threading.local(), TaskPerformer.__call__, LaneContext._checked_copy

    def performing(self, lane, task):
        running.task = task
        return perform(self, lane, task)

    def copying(self, dst, src, direction, pinned):
        copied = Copied(running.task, pinned, src if direction is LaneKind.H2D else dst)
        copies.append(copied)
        assert not pinned or (copied.host.is_contiguous() and copied.lies_in(device.locked)), running.task
        copy(self, dst, src, direction, pinned)

    with monkeypatch.context() as patches:
        patches.setattr(TaskPerformer, "__call__", performing)
        patches.setattr(LaneContext, "_checked_copy", copying)
        yield copies


def policy_for(schedule, places):
    """Or skips the test."""
    policy = Policy.usual(schedule, len(PROMPTS), 2, **places)
    try:
        policy.check_places(schedule)
    except InputError:
        pytest.skip("not where this schedule works")
    return policy


def may_be_pageable(task, run):
    """Whether the schedule's system copies this from or to memory that is not page-locked."""
    if task.op in WEIGHTS:
        return task.op is Op.LOAD_WEIGHTS_PAGEABLE
    if task.op in KV_OPS:
        return not run.schedule.system.pins_kv
    buffers = run.layout(run.policy.num_micro_batches).buffers
    on_host = {
        Op.OFFLOAD_QKV: "qkv on host",
        Op.STORE_HIDDEN: "hidden on host",
        Op.LOAD_HIDDEN: "attention on host" if task.step else "hidden on host",
    }
    return buffers[on_host[task.op]].tier is not Tier.PINNED


@pytest.mark.parametrize("places", PLACES, ids=str)
@pytest.mark.parametrize("name", registered())
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_copies_are_page_locked_where_the_schedule_says_so(family, name, places, monkeypatch):
    schedule, model = by_name(name), make(family)
    policy = policy_for(schedule, places)
    with WatchedDevice() as device, watched_copies(monkeypatch, device) as copies:
        result = engine.run(model, PROMPTS, schedule, policy, max_new_tokens=NEW, device=device)
        assert not device.locked
    assert result.sequences == reference(model, PROMPTS, 2, NEW)
    run = RunContext.of(model, schedule, policy, device, None)
    assert {one.task.op for one in copies if not one.pinned and not may_be_pageable(one.task, run)} == set()
    assert any(one.pinned for one in copies) or not policy.pin_weights


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
    locked = []
    policy = Policy(2, 1)
    with WatchedDevice() as device:
        register = device._register
        device._register = lambda *where: (locked.append(where), register(*where))
        device._page_locked._register = device._register
        engine.run(make("mixtral"), PROMPTS[:2], policy=policy, max_new_tokens=3, device=device)
        once = len(locked)
        locked.clear()
        engine.run(make("mixtral"), PROMPTS[:2] * 4, policy=policy, max_new_tokens=3, device=device)
    assert len(locked) == once
