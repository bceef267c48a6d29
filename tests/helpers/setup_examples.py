"""Any setup that hypothesis thinks of."""

from hypothesis import settings, strategies as st
from sim_examples import few_layers, round_machine

from sim.cost import Setup
from sim.problem import Policy, Problem, Routing, Workload
from sim.schedule import ExpertPlace, Place, by_name, registered

SETTINGS = settings(deadline=None, derandomize=True, max_examples=60)
ALL = sorted(registered())

SHARES = [(0, 0, 0), (2, 3, 2), (1, 7, 0), (2.5, 5.5, 0), (0, 3, 5), (3, 0, 2), (8, 0, 0)]
"""Eighths of a layer's experts on the device, on the host, and fetched; the rest is where the system has others."""

RATES = (  # of everything that can bind a lane or a pool
    "pin",
    "device.gemm.compute",
    "device.experts.memory",
    "device_memory.bandwidth",
    "host.request_overhead",
    "host.attention.memory",
    "host_memory.bandwidth",
    "link.h2d",
    "link.d2h",
    "link.duplex",
    "link.h2d_pageable",
    "link.d2h_pageable",
)


@st.composite
def machines(draw, rates=RATES):
    """The round machine, on one device or two, some of its rates changed."""
    machine = round_machine(draw(st.sampled_from([1, 1, 1, 2])))
    for path in draw(st.lists(st.sampled_from(RATES), max_size=3, unique=True)):
        value = machine.value(path) * draw(st.sampled_from([0.02, 0.1, 0.3, 3.0, 20.0]))
        machine = machine.with_value(path, min(1.0, value) if path.endswith((".compute", ".memory")) else value)
    return machine


@st.composite
def split_policies(draw, system, num_micro_batches):
    """Fields of a policy that puts experts wherever the system can have them."""
    chosen = {"prefill_experts": draw(st.sampled_from(system.prefill_experts))}
    if num_micro_batches > 1:
        chosen["groups"] = draw(st.sampled_from([None, 1, 2]))
    if system.whole_layers:
        return chosen
    device, host, fetched = (share / 8 for share in draw(st.sampled_from(SHARES)))
    chosen |= {"experts_on_device": device, "deal_experts": draw(st.booleans())}
    if system.experts & ExpertPlace.HOST:
        chosen["experts_on_host"] = host
    if system.defers_experts:
        chosen["defer_experts"] = draw(st.sampled_from([0, 1]))
    if system.experts & ExpertPlace.FETCHED:
        chosen["experts_fetched"] = fetched
    if Place.GPU in system.attention and system.attention[0] is Place.CPU and draw(st.booleans()):
        chosen |= {"attention": "gpu", "kv_on_device": draw(st.sampled_from([0.0, 0.5, 1.0]))}
    return chosen


@st.composite
def any_setup(draw, gen_lens, schedules=tuple(ALL)):
    """A small problem whose lanes and pools bind in any combination."""
    machine = draw(machines())
    lengths, padded = draw(st.sampled_from([((40,), True), ((5, 60, 25, 90), False), ((10, 70), True)]))
    workload = Workload("any", lengths, draw(gen_lens), padded=padded)
    schedule = by_name(draw(st.sampled_from(schedules)))
    size = draw(st.sampled_from([1, 3, 8]))
    share = 1.0 if schedule.system.streams_non_experts else 0.5
    policy = {
        "experts_on_device": draw(st.sampled_from([0.0, 0.0, share])),
        "pin_weights": draw(st.sampled_from([0.0, 0.3, 0.75, 1.0])),
    }
    if schedule.name == "flexgen":
        policy["kv_on_device"] = draw(st.sampled_from([0.0, 0.5, 1.0]))
    count = 1 if schedule.system.one_batch else draw(st.integers(1, 5))
    if schedule.system.splits_experts:
        policy |= draw(split_policies(schedule.system, count))
    if schedule.system.mixes_attention and policy.get("attention") != "gpu":
        policy["attention_on_device"] = draw(st.sampled_from([0.0, 0.4, 0.7, 1.0]))
    model = few_layers("mixtral-8x7b", draw(st.integers(1, 5)), draw(st.sampled_from([None, 50])))
    problem = Problem(model, machine, workload, Routing.parse(draw(st.sampled_from(["uniform", "zipf:1"]))))
    return Setup(problem, schedule, Policy.usual(schedule, size * count, size, **policy))
