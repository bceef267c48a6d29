"""From a task to seconds, and why: each op's work over the roofs it touches, and its demand on shared pools.

Solo time = launch latency + max(FLOPs / rate, bytes / bandwidth) over the levels the op touches (the HRM for one task,
MoE-Lightning section 3), at rates of peak × efficiency of the op's class. All cost formulas of the project are here.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple

from sim.cost.memory import kept_tokens
from sim.cost.pools import Cost
from sim.problem import Batch, Efficiency, Hardware, Layer, MicroBatch, Model, Policy, Processor, packed_bytes
from sim.schedule import WHOLE, LaneKind, Op, PipelineShape, Place, Schedule, Task

DRAM, CPU_CORES = 0, 1
"""Pools of the host. Cores are counted in thousandths of all of them."""
ALL_CORES = 1000

PIN_TRAFFIC = 2
"""DRAM bytes per byte pinned: one read, one written."""
PAGEABLE_TRAFFIC = 3
"""DRAM bytes per byte of a pageable copy: the driver reads it, writes its relay buffer, and the DMA reads that."""
EMULATED_TRAFFIC = 2
"""DRAM bytes per byte that an emulated link copies: device memory is host memory."""

WHOLE_INTERPRETER = 1000

WORKSPACE_BITS = 32
"""Width of the numbers that attention works with where it copies the KV cache first."""
EXPANDED_PASSES = 3
"""Times such a copy goes through DRAM: its cache lines are fetched to be written, written, and read by the products."""

CACHE_LIMIT = 5_000
"""Costs remembered before the memory of them starts anew."""

ROUNDING = 16
"""More than the demands on a pool can gain by being whole bytes per second."""

GROWS_WITH_CONTEXT = frozenset({Op.ATTN, Op.LOAD_KV})
"""Ops whose cost differs from one decode step to the next; the others tell only prefill from decode."""


def hbm(rank: int) -> int:
    """Pool of one device's memory."""
    return 2 + 2 * rank


def link(rank: int) -> int:
    """Pool of one device's link, both directions together."""
    return 3 + 2 * rank


def interpreter(num_devices: int) -> int:
    """Pool of the interpreter that all lanes of an emulated device are threads of."""
    return 2 + 2 * num_devices


class KernelWork(NamedTuple):
    """FLOPs and bytes of one part of an op, its class, how often it pays the fixed time of that class, and tokens."""

    flops: float
    bytes: float
    efficiency: Efficiency
    launches: int = 1
    tokens: float = 1.0


class CostModel:
    """Costs of all tasks of one run; call it with a task.

    `only_contended` leaves out demands on pools that all lanes together cannot exceed, which need no watching.
    Equal tasks are computed once: the cost depends on the op, the kinds of layer, micro-batch and page, the rank and
    prefill or decode, and in `GROWS_WITH_CONTEXT` on the step. Kinds are numbers from 0 on; the last entry of a list of
    kinds is -1 and answers for `NONE` and `WHOLE`.
    """

    def __init__(
        self,
        schedule: Schedule,
        shape: PipelineShape,
        policy: Policy,
        model: Model,
        batch: Batch,
        hardware: Hardware,
        *,
        only_contended: bool = False,
    ) -> None:
        self._shape, self._policy, self._model, self._hardware = shape, policy, model, hardware
        self._parts = hardware.num_devices if schedule.system.splits_batch else 1
        """Devices beside this one, and it, that share the host while each does its own part of the batch."""
        self._ranks = hardware.num_devices // self._parts
        self._expands_cache = schedule.system.expands_cache
        self._gathered = self._parts if schedule.system.gathers_weights else 1
        self._streams = any(shape.streamed) or (shape.streams_kv and shape.attention is Place.GPU)
        self._interpreter = interpreter(hardware.num_devices)
        self._activation_bits, self._activation_bytes = model.activation_bits, model.activation_bits / 8
        self._kv_bits = policy.cache_bits(model)
        self._kv_pageable = not schedule.system.pins_kv
        self._activations_pageable = not schedule.system.pins_activations
        self._left_out = _never_exceeded(hardware) if only_contended else frozenset[int]()
        self._micro_batches = batch.micro_batches
        self._streamed = [policy.streamed_bytes(schedule, model, layer) for layer in model.layers]
        self.layer_kinds = [*model.layer_kinds, -1]
        self.batch_kinds = [*_kinds(batch.micro_batches), -1]
        self.page_kinds = self._page_kinds()
        """Per kind of layer, of pages with equally many bytes; the last entry is for no layer."""
        self._known: dict[tuple[Op, int, int, int, int, int], Cost] = {}
        self._formulas: dict[Op, Callable[[Task], Cost]] = {
            Op.PRE_ATTN: self._pre_attn,
            Op.ATTN: self._attn,
            Op.POST_ATTN: self._post_attn,
            Op.OUT_PROJ: self._out_proj_alone,
            Op.EXPERTS: self._experts_alone,
            Op.HEAD: self._head,
            Op.OFFLOAD_QKV: self._offload_qkv,
            Op.LOAD_HIDDEN: self._load_hidden,
            Op.STORE_HIDDEN: self._store_hidden,
            Op.LOAD_WEIGHTS: self._load_weights,
            Op.LOAD_WEIGHTS_PAGEABLE: self._load_weights_pageable,
            Op.PIN_WEIGHTS: self._pin_weights,
            Op.LOAD_KV: self._load_kv,
            Op.STORE_KV: self._store_kv,
            Op.ALL_REDUCE: self._all_reduce,
        }

    def __call__(self, task: Task) -> Cost:
        """Solo time, demands and the physics of one task."""
        _, op, lane, step, layer, j, page, _ = task
        when = step if op in GROWS_WITH_CONTEXT else step > 0
        kind = self.layer_kinds[layer]
        key = (op, when, kind, self.batch_kinds[j], self.page_kinds[kind][page], lane.rank)
        cost = self._known.get(key)
        if cost is None:
            if len(self._known) > CACHE_LIMIT:
                self._known.clear()
            cost = self._formulas[op](task)
            if self._left_out:
                cost = cost._replace(demands=tuple(one for one in cost.demands if one[0] not in self._left_out))
            self._known[key] = cost
        return cost

    @property
    def capacities(self) -> Sequence[int]:
        """Per pool, what it gives in a second; of the host, what is left to one of the parts of the batch."""
        dram, cores, *of_device = _capacities(self._hardware)
        return (dram // self._parts, cores // self._parts, *of_device)

    @property
    def hand_over_ns(self) -> int:
        """How long after a task's end another lane notices it."""
        return round((self._hardware.hand_over_s or 0.0) * 1e9)

    def _page_kinds(self) -> list[list[int]]:
        pages = self._shape.num_pages
        of_layer = dict(zip(self.layer_kinds, self._streamed, strict=False))
        return [[*_kinds(self._sizes(whole)), -1] for _, whole in sorted(of_layer.items())] + [[-1] * (pages + 1)]

    def _sizes(self, whole: int) -> list[int]:
        """Bytes of each page of a layer; they differ by a byte at most."""
        pages = self._shape.num_pages
        return [whole * (page + 1) // pages - whole * page // pages for page in range(pages)]

    # what a task works on -------------------------------------------------------------------------------------

    def _layer(self, task: Task) -> Layer:
        return self._model.layers[task.layer]

    def _micro_batch(self, task: Task) -> MicroBatch:
        return self._micro_batches[task.micro_batch]

    def _tokens(self, task: Task) -> int:
        """Tokens that go through a layer: whole prompts in prefill, one a request in decode."""
        one = self._micro_batch(task)
        return one.prompt_tokens if task.step == 0 else one.num_requests

    # GPU ------------------------------------------------------------------------------------------------------

    def _pre_attn(self, task: Task) -> Cost:
        layer, tokens = self._layer(task), self._tokens(task)
        weights = packed_bytes(layer.attention.pre_params, self._model.other_bits)
        moved = tokens * (
            layer.hidden_size * self._activation_bytes + self._share(layer.qkv_bytes_per_token(self._activation_bits))
        )
        flops, moved = self._share(layer.pre_attn_flops(tokens)), self._share(weights) + moved
        return self._on_gpu(task, [KernelWork(flops, moved, self._hardware.device.gemm, tokens=tokens)])

    def _attn(self, task: Task) -> Cost:
        layer, one = self._layer(task), self._micro_batch(task)
        bits = self._kv_bits
        if task.step == 0:
            pairs = min(
                one.prompt_tokens_squared / 2, one.prompt_tokens * (layer.attention.window or one.prompt_tokens)
            )
            per_token = layer.qkv_bytes_per_token(self._activation_bits) + layer.attention_output_bytes_per_token(
                self._activation_bits
            )
            moved = float(one.prompt_tokens * per_token)
            flops = layer.attention_flops(pairs, expanded=True)
            kernel = self._hardware.device.attention
            return self._on_gpu(
                task, [KernelWork(self._share(flops), self._share(moved), kernel, tokens=one.prompt_tokens)]
            )
        context = kept_tokens(layer, one, task.step)
        if task.lane.kind is LaneKind.CPU:
            context = min(context, one.context_tokens(task.step) - one.padding_tokens)
        flops = self._share(layer.attention_flops(context))
        moved = self._share(context * layer.kv_bytes_per_token(bits))
        if task.lane.kind is LaneKind.CPU:
            return self._on_cpu(flops, moved * self._passes(layer), self._share(one.num_requests))
        device = self._hardware.device
        kernel = device.decode_attention or device.attention
        return self._on_gpu(task, [KernelWork(flops, moved, kernel, tokens=one.num_requests)])

    def _post_attn(self, task: Task) -> Cost:
        return self._on_gpu(task, [self._out_proj(task)._replace(launches=0), *self._ffn(task)])

    def _out_proj_alone(self, task: Task) -> Cost:
        return self._on_gpu(task, [self._out_proj(task)])

    def _experts_alone(self, task: Task) -> Cost:
        return self._on_gpu(task, self._ffn(task))

    def _out_proj(self, task: Task) -> KernelWork:
        layer, tokens = self._layer(task), self._tokens(task)
        weights = packed_bytes(layer.attention.post_params, self._model.other_bits)
        moved = tokens * (layer.attention_output_bytes_per_token(self._activation_bits) + weights / max(tokens, 1))
        flops = self._share(layer.out_proj_flops(tokens))
        return KernelWork(flops, self._share(moved), self._hardware.device.gemm, tokens=tokens)

    def _ffn(self, task: Task) -> list[KernelWork]:
        """Router, shared experts and dense network as plain GEMMs; routed experts as their own class.

        The class of the experts has the fixed time of all of it, once for each place where experts are.
        """
        layer, tokens = self._layer(task), self._tokens(task)
        expert = layer.expert.weights if layer.expert else 0
        routed_flops = 2.0 * tokens * layer.top_k * expert
        routed_bytes = layer.experts_touched(tokens) * layer.expert_bytes(self._policy.expert_bits(self._model))
        through = 2 * tokens * layer.hidden_size * self._activation_bytes
        always = layer.router_params + layer.shared_expert_params + layer.dense_ffn_params
        plain = KernelWork(
            self._share(layer.ffn_flops(tokens) - routed_flops),
            self._share(packed_bytes(always, self._model.other_bits)) + through,
            self._hardware.device.gemm,
            tokens=tokens,
        )
        if not layer.num_experts:
            return [plain]
        places = 2 if 0 < self._policy.experts_on_device < 1 else 1
        activations = tokens * layer.top_k * 2 * layer.hidden_size * self._activation_bytes
        moved, efficiency = self._share(routed_bytes) + activations, self._hardware.device.experts
        return [plain._replace(launches=0), KernelWork(self._share(routed_flops), moved, efficiency, places, tokens)]

    def _head(self, task: Task) -> Cost:
        requests = self._micro_batch(task).num_requests
        work = KernelWork(
            self._share(self._model.head_flops(requests)),
            self._share(self._model.head_bytes()),
            self._hardware.device.head or self._hardware.device.gemm,
            tokens=requests,
        )
        return self._on_gpu(task, [work])

    def _share(self, whole: float) -> float:
        """One rank's part of what tensor parallelism splits: heads, expert columns, vocabulary."""
        return whole / self._ranks

    def _on_gpu(self, task: Task, works: Sequence[KernelWork]) -> Cost:
        device, memory = self._hardware.device, self._hardware.device_memory
        roofs: dict[str, float] = {"launch latency": float(device.launch_latency_s)}
        for work in works:
            ratio = work.efficiency.time_ratio(work.tokens)
            fixed_s = work.efficiency.latency_s or 0.0
            roofs["launch latency"] += (work.launches - 1 + ratio) * fixed_s if work.launches else 0.0
            compute = work.flops / (device.peak_flops_per_s * work.efficiency.compute)
            traffic = work.bytes / (memory.bandwidth_bytes_per_s * work.efficiency.memory)
            roof = "device compute" if compute >= traffic else "device memory"
            hidden = 1.0 if work.efficiency.overlap is None else work.efficiency.overlap
            seconds = max(compute, traffic) + (1.0 - hidden) * min(compute, traffic)
            roofs[roof] = roofs.get(roof, 0.0) + ratio * seconds
        moved = sum(work.bytes for work in works)
        flops, emulation = sum(work.flops for work in works), self._hardware.emulation
        if emulation is None:
            return _cost(roofs, {hbm(task.lane.rank): moved}, moved, flops)
        if task.step and self._streams:
            roofs["beside a stream"] = sum(roofs.values()) * (1 / emulation.beside_stream - 1)
        return self._in_turn(_cost(roofs, {DRAM: moved}, moved, flops))

    # CPU ------------------------------------------------------------------------------------------------------

    def _on_cpu(self, flops: float, moved: float, requests: float) -> Cost:
        """Attention beside the KV cache; each request also costs a fixed time. One task can use all cores."""
        host, memory = self._hardware.host, self._hardware.host_memory
        kernel = host.decode_attention or host.attention
        compute = flops / (host.peak_flops_per_s * kernel.compute)
        traffic = moved / (memory.bandwidth_bytes_per_s * kernel.memory)
        ratio = kernel.time_ratio(requests)
        roofs = {
            "launch latency": float(host.launch_latency_s),
            "request overhead": ratio * requests * host.request_overhead_s,
            ("host compute" if compute >= traffic else "host memory"): ratio * max(compute, traffic),
        }
        cost = _cost(roofs, {DRAM: moved}, moved, flops)
        return self._in_turn(cost._replace(demands=(*cost.demands, (CPU_CORES, ALL_CORES))))

    def _passes(self, layer: Layer) -> float:
        """Bytes that attention on the host moves per byte of KV cache. A kernel that was measured reads it in place."""
        if not self._expands_cache or self._hardware.host.decode_attention is not None:
            return 1.0
        group = layer.attention.num_query_heads / layer.attention.num_kv_heads
        return 1.0 + EXPANDED_PASSES * group * WORKSPACE_BITS / self._kv_bits

    # copies ---------------------------------------------------------------------------------------------------

    def _offload_qkv(self, task: Task) -> Cost:
        """Query, keys and values, one after the other."""
        size = self._tokens(task) * self._share(self._layer(task).qkv_bytes_per_token(self._activation_bits))
        return self._copy(task, size, pageable=self._activations_pageable, copies=3)

    def _load_hidden(self, task: Task) -> Cost:
        """Decode: what CPU attention returns, each rank its heads. Prefill: the hidden states, whole on each rank."""
        layer, bits = self._layer(task), self._activation_bits
        if task.step == 0:
            per_token = float(layer.hidden_bytes_per_token(bits))
        else:
            per_token = self._share(layer.attention_output_bytes_per_token(bits))
        return self._copy(task, self._tokens(task) * per_token, pageable=self._activations_pageable)

    def _store_hidden(self, task: Task) -> Cost:
        size = self._tokens(task) * self._layer(task).hidden_bytes_per_token(self._activation_bits)
        return self._copy(task, size, pageable=self._activations_pageable)

    def _load_weights(self, task: Task) -> Cost:
        return self._gather(self._page_bytes(task), lambda own: self._copy(task, own))

    def _load_weights_pageable(self, task: Task) -> Cost:
        return self._gather(self._page_bytes(task), lambda own: self._copy(task, own, pageable=True))

    def _gather(self, whole: float, copy: Callable[[float], Cost]) -> Cost:
        """Fetch this device's part of some weights from the host, then the others from its peers (ZeRO stage 3)."""
        own, network = whole / self._gathered, self._hardware.network
        cost = copy(own)
        if network is None or self._gathered == 1:
            return cost
        seconds = network.latency_s + (whole - own) / network.bandwidth_bytes_per_s
        duration_ns = cost.duration_ns + round(seconds * 1e9)
        slower = cost.duration_ns / duration_ns
        demands = tuple((pool, round(amount * slower)) for pool, amount in cost.demands)
        bound = cost.bound if slower > 1 / 2 else "network"
        return Cost(duration_ns, demands, round(whole), 0, bound)

    def _load_kv(self, task: Task) -> Cost:
        layer = self._layer(task)
        cached = kept_tokens(layer, self._micro_batch(task), task.step - 1) * (1 - self._policy.kv_on_device)
        size = self._share(cached * layer.kv_bytes_per_token(self._kv_bits))
        return self._copy(task, size, pageable=self._kv_pageable, copies=2)

    def _store_kv(self, task: Task) -> Cost:
        layer, one = self._layer(task), self._micro_batch(task)
        new = kept_tokens(layer, one, 0) if task.step == 0 else one.num_requests
        stored = new * (1 - self._policy.kv_on_device) * layer.kv_bytes_per_token(self._kv_bits)
        return self._copy(task, self._share(stored), pageable=self._kv_pageable, copies=2)

    def _page_bytes(self, task: Task) -> float:
        """One rank's part of a page."""
        whole, pages = self._streamed[task.layer], self._shape.num_pages
        if task.page == WHOLE:
            return self._share(whole)
        return self._share(whole * (task.page + 1) // pages - whole * task.page // pages)

    def _copy(self, task: Task, size: float, *, pageable: bool = False, copies: int = 1) -> Cost:
        links, rank = self._hardware.link, task.lane.rank
        if task.lane.kind is LaneKind.H2D:
            rate, name = (links.h2d_pageable_bytes_per_s if pageable else links.h2d_bytes_per_s), "link h2d"
        else:
            rate, name = (links.d2h_pageable_bytes_per_s if pageable else links.d2h_bytes_per_s), "link d2h"
        roofs = {"copy latency": copies * links.latency_s, f"{name} pageable" if pageable else name: size / rate}
        if self._hardware.emulation is None:
            traffic = {DRAM: size * (PAGEABLE_TRAFFIC if pageable else 1), hbm(rank): size, link(rank): size}
            return _cost(roofs, traffic, size, 0.0)
        cost = _cost(roofs, {DRAM: EMULATED_TRAFFIC * size, link(rank): size}, size, 0.0)
        return self._in_turn(cost) if cost.bound == "copy latency" else cost

    def _pin_weights(self, task: Task) -> Cost:
        size = self._page_bytes(task)
        latency = float(self._hardware.host.launch_latency_s)
        roofs = {"launch latency": latency, "pin copy": size / self._hardware.pin_bytes_per_s}
        cost = _cost(roofs, {DRAM: PIN_TRAFFIC * size}, size, 0.0)
        return self._in_turn(cost) if cost.bound == "launch latency" else cost

    def _in_turn(self, cost: Cost) -> Cost:
        """The cost with a demand for the interpreter, if lanes are threads of one."""
        emulation = self._hardware.emulation
        if emulation is None:
            return cost
        return cost._replace(demands=(*cost.demands, (self._interpreter, round(WHOLE_INTERPRETER * emulation.turns))))

    # collectives ----------------------------------------------------------------------------------------------

    def _all_reduce(self, task: Task) -> Cost:
        """Ring all-reduce of the hidden states: each rank sends and receives 2 (r − 1) / r of them."""
        network = self._hardware.network
        size = self._tokens(task) * self._layer(task).hidden_bytes_per_token(self._activation_bits)
        moved = 2 * (self._ranks - 1) / self._ranks * size
        if network is None:
            return Cost(0)
        roofs = {"network latency": float(network.latency_s), "network": moved / network.bandwidth_bytes_per_s}
        return _cost(roofs, {}, moved, 0.0)


def _kinds(things: Iterable[Hashable]) -> list[int]:
    """Of each thing a number that it shares with equal ones, from 0 on."""
    alike: dict[Hashable, int] = {}
    return [alike.setdefault(one, len(alike)) for one in things]


def _capacities(hardware: Hardware) -> tuple[int, ...]:
    per_rank = (int(hardware.device_memory.bandwidth_bytes_per_s), int(hardware.link.duplex_bytes_per_s))
    behind = () if hardware.emulation is None else (WHOLE_INTERPRETER,)
    return (int(hardware.host_memory.bandwidth_bytes_per_s), ALL_CORES, *(per_rank * hardware.num_devices), *behind)


def _never_exceeded(hardware: Hardware) -> frozenset[int]:
    """Pools that hold even if every lane asks for the most that any of its tasks can."""
    if hardware.emulation is not None:
        return frozenset(map(hbm, range(hardware.num_devices)))
    ranks, device, host, links = hardware.num_devices, hardware.device, hardware.host, hardware.link
    pinned = (links.h2d_bytes_per_s, links.d2h_bytes_per_s)
    pageable = (links.h2d_pageable_bytes_per_s, links.d2h_pageable_bytes_per_s)
    on_link = sum(map(max, pinned, pageable)) + ROUNDING
    through_dram = sum(max(rate, PAGEABLE_TRAFFIC * slow) for rate, slow in zip(pinned, pageable, strict=True))
    attention = hardware.host_memory.bandwidth_bytes_per_s * _highest_memory_share(host)
    kernels = _highest_memory_share(device)
    most = {
        DRAM: ranks * (attention + PIN_TRAFFIC * hardware.pin_bytes_per_s + through_dram + ROUNDING),
        CPU_CORES: float(ranks * ALL_CORES),
    }
    for rank in range(ranks):
        most[hbm(rank)] = hardware.device_memory.bandwidth_bytes_per_s * kernels + on_link
        most[link(rank)] = on_link
    capacities = _capacities(hardware)
    return frozenset(pool for pool, amount in most.items() if amount <= capacities[pool])


def _highest_memory_share(processor: Processor) -> float:
    classes = (processor.gemm, processor.experts, processor.attention, processor.head, processor.decode_attention)
    return max(one.memory / min((at.time_ratio for at in one.at_tokens), default=1.0) for one in classes if one)


def _cost(roofs: dict[str, float], traffic: dict[int, float], moved: float, flops: float) -> Cost:
    """Add up the parts' times; the demand on each pool is the traffic spread over them."""
    seconds = sum(roofs.values())
    duration_ns = max(1, round(seconds * 1e9))
    demands = tuple((pool, round(amount / seconds)) for pool, amount in traffic.items() if amount > 0)
    return Cost(duration_ns, demands, round(moved), round(flops), max(roofs, key=lambda roof: roofs[roof]))
