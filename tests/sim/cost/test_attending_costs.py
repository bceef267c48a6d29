"""What attention in two places costs and takes: by the lane it is on, and of the memory where its KV cache stays."""

import pytest
from sim_examples import made_setup, one_task

from sim.cost.memory import kv_bytes
from sim.schedule import Op

SIZES = {"micro_batch_size": 8, "num_micro_batches": 4}


@pytest.mark.parametrize("first_on_cpu", [True, False])
def test_equal_micro_batches_cost_what_their_lanes_take(first_on_cpu):
    """Whichever is asked first: what is remembered of one is not the other's."""
    costs = made_setup(**SIZES, attention_on_device=0.5).costs()
    tasks = {on_cpu: one_task(Op.ATTN, micro_batch=int(not on_cpu), on_cpu=on_cpu) for on_cpu in (True, False)}
    found = {on_cpu: costs(tasks[on_cpu]) for on_cpu in (first_on_cpu, not first_on_cpu)}
    on_cpu, on_gpu = made_setup(**SIZES), made_setup(**SIZES, attention="gpu", kv_on_device=1.0)
    assert found[True] == on_cpu.costs()(tasks[True])
    assert found[False] == on_gpu.costs()(tasks[False])
    assert found[True] != found[False]


@pytest.mark.parametrize(("share", "count"), [(0.25, 1), (0.5, 2), (1.0, 4)])
@pytest.mark.parametrize("name", ["cgopipe", "hybrid"])
def test_their_cache_moves_to_the_device_and_their_exchange_off_the_host(name, share, count):
    without, mixed = made_setup(name, **SIZES), made_setup(name, **SIZES, attention_on_device=share)
    cache = kv_bytes(without.problem.model, without.policy, without.batch, 3)
    assert mixed.memory.device["kv cache"] == cache * count // 4
    assert mixed.memory.host.get("kv cache", 0) == cache - cache * count // 4
    exchanged = without.memory.host["attention exchange"]
    assert mixed.memory.host.get("attention exchange", 0) == exchanged * (4 - count) // 4
    others = {part: size for part, size in without.memory.device.items() if part not in ("kv cache", "kv buffers")}
    assert {part: mixed.memory.device[part] for part in others} == others
