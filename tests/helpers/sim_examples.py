"""A machine of round numbers and small problems on it, so that a person can work out what must come out."""

from dataclasses import replace
from functools import cache

from sim.cost import Setup
from sim.hrm.estimate import layer_time, tokens_per_s
from sim.problem import Hardware, Model, Policy, Problem, Quantity, Workload
from sim.schedule import CPU, Lane, LaneKind, Op, Task, by_name

ON_LANE = {
    Op.OFFLOAD_QKV: LaneKind.D2H,
    Op.STORE_KV: LaneKind.D2H,
    Op.STORE_HIDDEN: LaneKind.D2H,
    Op.LOAD_HIDDEN: LaneKind.H2D,
    Op.LOAD_KV: LaneKind.H2D,
    Op.LOAD_WEIGHTS: LaneKind.H2D,
    Op.LOAD_WEIGHTS_PAGEABLE: LaneKind.H2D,
    Op.PIN_WEIGHTS: LaneKind.PIN,
    Op.ALL_REDUCE: LaneKind.NET,
    Op.OFFLOAD_TOKENS: LaneKind.D2H,
    Op.HOST_EXPERTS: LaneKind.CPU,
    Op.HOST_LAYER: LaneKind.CPU,
    Op.LOAD_OUTPUT: LaneKind.H2D,
    Op.FETCH_EXPERTS: LaneKind.H2D,
}


def decode_tokens_per_s(dims, policy, constants):
    """What the paper's optimizer rates a policy by, from its own layer time."""
    layer_s = layer_time(dims, policy, constants).total_s
    return tokens_per_s(policy.batch_size, policy.gen_len, layer_s, dims.n_layers)


def _amount(value, unit):
    return {"value": value, "unit": unit, "basis": "assumed", "source": "a round number"}


def _efficiency(compute, memory):
    return {"compute": _amount(compute, "1"), "memory": _amount(memory, "1")}


@cache
def round_machine(num_devices=1, **changes):
    """No two rates of a kind are equal, so that a wrong one shows. In the names of `changes`, `__` stands for a dot."""
    table = {
        "name": "round",
        "description": "a machine of round numbers",
        "num_devices": num_devices,
        "pinned": _amount(500, "GB"),
        "pin": _amount(5, "GB/s"),
        "device": {
            "peak": _amount(100, "TFLOPS"),
            "launch_latency": _amount(10, "us"),
            "request_overhead": _amount(0, "us"),
            "gemm": _efficiency(0.5, 0.5),
            "experts": _efficiency(0.25, 0.8),
            "attention": _efficiency(0.2, 0.4),
        },
        "device_memory": {"capacity": _amount(64, "GB"), "bandwidth": _amount(1, "TB/s")},
        "host": {
            "peak": _amount(1, "TFLOPS"),
            "launch_latency": _amount(20, "us"),
            "request_overhead": _amount(5, "us"),
            "gemm": _efficiency(0.9, 0.9),
            "experts": _efficiency(0.7, 0.7),
            "attention": _efficiency(0.5, 0.25),
        },
        "host_memory": {"capacity": _amount(1, "TB"), "bandwidth": _amount(100, "GB/s")},
        "link": {
            "peak": _amount(32, "GB/s"),
            "h2d": _amount(10, "GB/s"),
            "d2h": _amount(8, "GB/s"),
            "duplex": _amount(16, "GB/s"),
            "h2d_pageable": _amount(4, "GB/s"),
            "d2h_pageable": _amount(2, "GB/s"),
            "latency": _amount(30, "us"),
        },
    }
    if num_devices > 1:
        table["network"] = {"bandwidth": _amount(2, "GB/s"), "latency": _amount(40, "us")}
    machine = Hardware.from_dict(table)
    for path, value in changes.items():
        machine = machine.with_value(path.replace("__", "."), value)
    return machine


def with_hand_over(machine, microseconds):
    """The machine, whose lanes notice an end on another lane so much later."""
    return replace(machine, hand_over_s=Quantity(microseconds, "us"))


def with_unpacking(machine, gigabytes_per_s):
    """The machine, whose device unpacks narrow experts at this rate before it computes with them."""
    rate = Quantity(gigabytes_per_s, "GB/s")
    return replace(machine, device=replace(machine.device, unpack_bytes_per_s=rate))


@cache
def preset(name):
    return Model.load(name)


@cache
def few_layers(name, num_layers, window=None):
    """The first layers of a preset; with `window`, every other one attends to a sliding window."""
    model = preset(name)
    layers = model.layers[:num_layers]
    if window is not None:
        sliding = (replace(one, attention=replace(one.attention, window=window)) for one in layers)
        layers = tuple(slid if at % 2 == 0 else one for at, (slid, one) in enumerate(zip(sliding, layers, strict=True)))
    return replace(model, layers=layers)


def made_setup(
    schedule="cgopipe", micro_batch_size=8, num_micro_batches=2, *, model=None, machine=None, workload=None, **policy
):
    """Mixtral 8x7B on the round machine, prompts of 100 tokens, 4 tokens generated, where nothing else is said."""
    problem = Problem(model or preset("mixtral-8x7b"), machine or round_machine(), workload or Workload.fixed(100, 4))
    plan = by_name(schedule)
    batch_size = micro_batch_size * (1 if plan.system.one_batch else num_micro_batches)
    return Setup(problem, plan, Policy.usual(plan, batch_size, micro_batch_size, **policy))


def one_task(op, step=1, layer=0, micro_batch=0, page=-1, *, rank=0, on_cpu=False):
    """A task by itself, on the lane it belongs to."""
    lane = CPU._replace(rank=rank) if on_cpu else Lane(ON_LANE.get(op, LaneKind.GPU), rank)
    return Task(0, op, lane, step, layer, micro_batch, page)


def cost_of(task, **setup):
    """What the task costs in `made_setup(**setup)`."""
    return made_setup(**setup).costs()(task)
