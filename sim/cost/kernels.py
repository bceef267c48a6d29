"""What runs on devices and host cores: projections, attention, experts, head, and the sums over devices.

Time = launch latency + max(FLOPs / rate, bytes / bandwidth) of each part of the work, at rates of peak × efficiency of
its class (the HRM for one task, MoE-Lightning section 3).
"""

from collections.abc import Callable
from typing import NamedTuple

from sim.cost.pools import ALL_CORES, CPU_CORES, DRAM, hbm
from sim.cost.sizes import Sizes
from sim.cost.work import Work
from sim.problem import Efficiency, Layer, MicroBatch, Use, packed_bytes
from sim.schedule import EXPERTS_SUM, ON_DEVICE, ExpertPlace, LaneKind, Op, Task

WORKSPACE_BITS = 32
"""Width of the numbers that attention works with where it copies the KV cache first."""
EXPANDED_PASSES = 3
"""Times such a copy goes through DRAM: its cache lines are fetched to be written, written, and read by the products."""


class KernelWork(NamedTuple):
    """FLOPs and bytes of one part of an op, its class, how often it pays the fixed time of that class, and tokens.

    `padding` is what the device computes over these FLOPs, whose results nobody asked for in between.
    """

    flops: float
    bytes: float
    efficiency: Efficiency
    launches: int = 1
    tokens: float = 1.0
    padding: float = 1.0


class Kernels:
    """The formulas of compute, by op."""

    def __init__(self, sizes: Sizes) -> None:
        self._sizes, self._model, self._hardware = sizes, sizes.model, sizes.hardware
        self._bits, self._widths, self._padding = sizes.model.activation_bits, sizes.placement.widths, sizes.padding
        self.formulas: dict[Op, Callable[[Task], Work]] = {
            Op.PRE_ATTN: self._pre_attn,
            Op.ATTN: self._attn,
            Op.POST_ATTN: lambda task: self._with_experts(task, self._out_proj(task)._replace(launches=0)),
            Op.OUT_PROJ: lambda task: self._on_gpu(task, self._out_proj(task)),
            Op.EXPERTS: self._with_experts,
            Op.HEAD: self._head,
            Op.ALL_REDUCE: self._all_reduce,
            Op.ROUTE: self._route,
            Op.DEVICE_EXPERTS: self._device_experts,
            Op.HOST_EXPERTS: self._host_experts,
            Op.ENTER_HOST: self._enter_host,
            Op.HOST_LAYER: self._host_layer,
        }

    def _gemm(self, task: Task, flops: float, moved: float, padding: float = 1.0) -> KernelWork:
        kernel = self._hardware.device.gemm
        return KernelWork(flops, moved, kernel, tokens=self._sizes.tokens(task), padding=padding)

    def _pre_attn(self, task: Task) -> Work:
        layer, tokens, share = self._sizes.layer(task), self._sizes.tokens(task), self._sizes.share
        weights = share(packed_bytes(layer.attention.pre_params, self._widths.attention))
        per_token = layer.hidden_size * (self._bits / 8) + share(layer.qkv_bytes_per_token(self._bits))
        flops, padding = share(layer.pre_attn_flops(tokens)), self._padding.pre_attn(layer, tokens)
        return self._on_gpu(task, self._gemm(task, flops, weights + tokens * per_token, padding))

    def _attn(self, task: Task) -> Work:
        if self._sizes.has_prompts(task):
            return self._attn_of_prompts(task)
        layer, one, share = self._sizes.layer(task), self._sizes.micro_batch(task), self._sizes.share
        on_cpu = task.lane.kind is LaneKind.CPU
        context = one.context_tokens(task.step) - (one.padding_tokens if on_cpu else 0)
        flops = share(layer.attention.decode_flops(context, one.num_requests))
        moved = self._sizes.share_of_cache(layer, self._read_bytes(layer, context, one.num_requests))
        if on_cpu:
            return self._attn_on_cpu(flops, moved * self._passes(layer), share(one.num_requests))
        device = self._hardware.device
        kernel = device.decode_attention or device.attention
        padding = self._padding.decode_attention(layer)
        return self._on_gpu(task, KernelWork(flops, moved, kernel, tokens=one.num_requests, padding=padding))

    def _read_bytes(self, layer: Layer, context: int, requests: int) -> int:
        """What decode reads of caches with so many tokens: the entries attended to, an index, states there and back."""
        attention, bits = layer.attention, self._sizes.kv_bits
        entries = attention.keeping.attended(context, requests) * layer.kv_bytes_per_token(bits)
        index = attention.keeping.indexed(context, requests) * layer.index_bytes_per_token(bits)
        return entries + index + 2 * requests * attention.state_bytes

    def _attn_on_cpu(self, flops: float, moved: float, requests: float) -> Work:
        """Attention beside the KV cache; each request also costs a fixed time."""
        host = self._hardware.host
        kernel = host.decode_attention or host.attention
        each = kernel.time_ratio(requests) * requests * host.request_overhead_s
        fixed = {"launch latency": float(host.launch_latency_s), "request overhead": each}
        slowdown = self._sizes.host_attention_slowdown
        return self._on_cpu(kernel, flops, moved, requests, fixed, slowdown)

    def _attn_of_prompts(self, task: Task) -> Work:
        layer, one, share = self._sizes.layer(task), self._sizes.micro_batch(task), self._sizes.share
        flops = layer.attention.prompt_flops(one.prompt_tokens, one.prompt_tokens_squared)
        moved = self._prompt_attention_bytes(layer, one)
        moved += self._sizes.earlier(task).bytes(layer, self._sizes.kv_bits)
        kernel, padding = self._hardware.device.attention, self._padding.prompt_attention(layer)
        work = KernelWork(share(flops), share(moved), kernel, tokens=one.prompt_tokens, padding=padding)
        return self._on_gpu(task, work)

    def _prompt_attention_bytes(self, layer: Layer, one: MicroBatch) -> float:
        """What goes into the attention of all prompts and comes out of it."""
        per_token = layer.qkv_bytes_per_token(self._bits) + layer.attention_output_bytes_per_token(self._bits)
        return float(one.prompt_tokens * per_token)

    def _out_proj(self, task: Task) -> KernelWork:
        layer, tokens, share = self._sizes.layer(task), self._sizes.tokens(task), self._sizes.share
        weights = packed_bytes(layer.attention.post_params, self._widths.attention)
        moved = tokens * (layer.attention_output_bytes_per_token(self._bits) + weights / max(tokens, 1))
        padding = self._padding.out_proj(layer, tokens)
        return self._gemm(task, share(layer.out_proj_flops(tokens)), share(moved), padding)

    def _with_experts(self, task: Task, *before: KernelWork) -> Work:
        """What a task does beside and in the experts, and to unpack them: packed bytes are read, wider ones written."""
        experts = self._sizes.unpacked_in_turn(task) if self._sizes.layer(task).num_experts else 0.0
        return self._unpacking(task, self._on_gpu(task, *before, *self._feed_forward(task)), experts)

    def _unpacking(self, task: Task, work: Work, experts: float) -> Work:
        """The same, behind the unpacking of so many experts, if this machine is known to unpack."""
        rate, layer, share = self._sizes.unpack_bytes_per_s, self._sizes.layer(task), self._sizes.share
        if rate is None or not experts:
            return work
        made = share(experts * layer.expert_bytes(self._bits))
        moved = made + share(experts * layer.expert_bytes(self._widths.experts))
        traffic = {pool: size + moved for pool, size in work.traffic.items()}
        roofs, memory_s = {**work.roofs, "unpacking": made / rate}, work.memory_s + made / rate
        return work._replace(roofs=roofs, traffic=traffic, moved=work.moved + moved, memory_s=memory_s)

    def _feed_forward(self, task: Task) -> list[KernelWork]:
        """Router, shared experts and dense network as plain GEMMs; routed experts as their own class.

        The class of the experts has the fixed time of all of it, once for each place where experts are.
        """
        layer, tokens, share = self._sizes.layer(task), self._sizes.tokens(task), self._sizes.share
        hidden_bytes = layer.hidden_size * (self._bits / 8)
        routed_flops = 2.0 * tokens * layer.top_k * (layer.expert.weights if layer.expert else 0)
        always_bytes = share(self._always_bytes(layer, layer.router_params)) + 2 * tokens * hidden_bytes
        padding = self._padding.networks(layer, tokens, router=True)
        plain = self._gemm(task, share(layer.ffn_flops(tokens) - routed_flops), always_bytes, padding)
        if not layer.num_experts:
            return [plain]
        touched, pairs = self._sizes.expert_use.touched(task.layer, tokens), tokens * layer.top_k
        used, rows = self._computed(task, tokens, Use(touched, pairs, tokens), layer.num_experts)
        bits, split = self._widths.experts, self._sizes.placement.splits[task.layer]
        count = 2 if 0 < split.resident < layer.num_experts else 1
        if self._sizes.unpack_bytes_per_s is not None:
            bits, count = self._bits, self._sizes.unpacked_parts(task)
        moved = share(used * layer.expert_bytes(bits)) + pairs * 2 * hidden_bytes
        padding, kernel = self._padding.experts(layer, rows, pairs), self._hardware.device.experts
        experts = KernelWork(share(routed_flops), moved, kernel, count, tokens, padding)
        return [plain._replace(launches=0), experts]

    def _computed(
        self, task: Task, tokens: float, asked: Use, count: float, places: ExpertPlace | None = None
    ) -> tuple[float, float]:
        """How many experts a device computes that may compute `count`, and for how many rows."""
        rows = self._sizes.computed_rows(task.layer, tokens, asked, count, places)
        return (asked.touched if self._hardware.device.expert_capacity_ratio is None else count), rows

    def _always_bytes(self, layer: Layer, router: int = 0) -> int:
        """Networks that every token passes, with so many parameters of a router."""
        return self._widths.bytes_of(shared=layer.shared_expert_params, dense=layer.dense_ffn_params, router=router)

    def _route(self, task: Task) -> Work:
        """What stands between attention and experts that are computed apart."""
        kernel = self._hardware.device.route or self._hardware.device.gemm
        before = () if self._sizes.ranks > 1 else (self._out_proj(task)._replace(launches=0),)  # OutProj, and its sum
        parts = (*before, self._router(task))
        return self._on_gpu(task, *(part._replace(efficiency=kernel) for part in parts))

    def _router(self, task: Task) -> KernelWork:
        layer, tokens = self._sizes.layer(task), self._sizes.tokens(task)
        weights = self._sizes.share(packed_bytes(layer.router_params, self._widths.router))
        moved = weights + tokens * layer.hidden_size * (self._bits / 8)
        padding = self._padding.router(layer, tokens)
        return self._gemm(task, self._sizes.share(2.0 * tokens * layer.router_params), moved, padding)

    def _device_experts(self, task: Task) -> Work:
        """Shared experts of a group, and the routed ones that are on the device or came there."""
        layer, tokens, share = self._sizes.layer(task), self._sizes.group_tokens(task), self._sizes.share
        places = self._sizes.shape.experts[task.layer] & ON_DEVICE
        split = self._sizes.placement.splits[task.layer]
        parts = []
        always = layer.shared_expert_params + layer.dense_ffn_params
        if always:
            moved = share(self._always_bytes(layer)) + 2 * tokens * layer.hidden_size * (self._bits / 8)
            launches = 0 if split.places & ON_DEVICE else 1
            flops, padding = share(2.0 * tokens * always), self._padding.networks(layer, tokens, router=False)
            parts.append(KernelWork(flops, moved, self._hardware.device.gemm, launches, tokens, padding))
        if split.places & ON_DEVICE:
            used, rows = self._computed(task, tokens, *self._asked_of_device(task), ON_DEVICE)
            asked = self._sizes.used(task, ON_DEVICE)
            flops, moved = self._routed(task, ON_DEVICE, used)
            count, padding = (split.places & places).bit_count(), self._padding.experts(layer, rows, asked.pairs)
            kernel = self._hardware.device.experts_apart or self._hardware.device.experts
            parts.append(KernelWork(share(flops), share(moved), kernel, count, tokens, padding))
        used = self._sizes.used(task, ON_DEVICE).touched if split.places & ON_DEVICE else 0.0
        return self._unpacking(task, self._on_gpu(task, *parts), used)

    def _asked_of_device(self, task: Task) -> tuple[Use, float]:
        """What a group asks of the experts on the device, and how many are there, of those that come what is used."""
        split, use = self._sizes.placement.splits[task.layer], self._sizes.used
        came = use(task, ExpertPlace.FETCHED).touched if split.fetched else 0.0
        return use(task, ON_DEVICE), split.resident + split.streamed + came

    def _routed(self, task: Task, places: ExpertPlace, experts: float | None = None) -> tuple[float, float]:
        """FLOPs and bytes of the routed experts in these places for the tokens of a group; of so many, if given."""
        layer, used = self._sizes.layer(task), self._sizes.used(task, places)
        assert layer.expert is not None, "a layer with experts in some place has experts"
        is_unpacked = bool(places & ON_DEVICE) and self._sizes.unpack_bytes_per_s is not None
        read = used.touched if experts is None else experts
        weights = read * layer.expert_bytes(self._bits if is_unpacked else self._widths.experts)
        moved = weights + used.pairs * 2 * layer.hidden_size * (self._bits / 8)
        return 2.0 * used.pairs * layer.expert.weights, moved

    def _host_experts(self, task: Task) -> Work:
        """Experts beside their weights in host memory, on all cores: arithmetic, memory or unpacking, the longest.

        Devices that share each tensor share them, too. Where no token asks for an expert of the host, there is no work.
        """
        host, kernel, share = self._hardware.host, self._hardware.host.experts, self._sizes.share
        flops, moved = self._routed(task, ExpertPlace.HOST)
        busy = min(1.0, self._sizes.used(task, ExpertPlace.HOST).tokens)
        fixed = {"launch latency": busy * (host.launch_latency_s + (kernel.latency_s or 0.0))}
        tokens = self._sizes.tokens_an_expert(task, ExpertPlace.HOST)
        return self._while_unpacking(task, self._on_cpu(kernel, share(flops), share(moved), tokens, fixed), fixed)

    def _while_unpacking(self, task: Task, work: Work, fixed: dict[str, float]) -> Work:
        """The same, or what it takes to unpack these experts beside it, if this host is known to and that is more."""
        rate = self._sizes.host_unpack_bytes_per_s
        if rate is None:
            return work
        experts = self._sizes.used(task, ExpertPlace.HOST).touched
        seconds = self._sizes.share(experts * self._sizes.layer(task).expert_bytes(self._bits)) / rate
        if sum(work.roofs.values()) >= sum(fixed.values()) + seconds:
            return work
        return work._replace(roofs={**fixed, "unpacking": seconds}, compute_s=seconds)

    def _enter_host(self, task: Task) -> Work:
        """Hidden states are read and written once."""
        return self._on_gpu(task, self._gemm(task, 0.0, 2.0 * self._sizes.hidden_bytes(task)))

    def _host_layer(self, task: Task) -> Work:
        """All of a layer on the host: attention, what is the same for all tokens, and the experts that they use."""
        layer, tokens, share = self._sizes.layer(task), self._sizes.tokens(task), self._sizes.share
        host = self._hardware.host
        width = layer.hidden_size * (self._bits / 8)
        routed_flops = 2.0 * tokens * layer.top_k * (layer.expert.weights if layer.expert else 0)
        flops = layer.pre_attn_flops(tokens) + layer.out_proj_flops(tokens) + layer.ffn_flops(tokens) - routed_flops
        weights, latency_s = share(layer.non_expert_bytes(self._widths)), float(host.gemm.latency_s or 0.0)
        fixed = {"launch latency": latency_s}
        others = self._on_cpu(host.gemm, share(flops), weights + 4 * tokens * width, tokens, fixed)
        touched = self._sizes.expert_use.touched(task.layer, tokens) if layer.num_experts else 0.0
        moved = touched * layer.expert_bytes(self._widths.experts) + 2 * tokens * layer.top_k * width
        each = max(1.0, tokens * layer.top_k / max(touched, 1e-9))
        fixed = {"launch latency": float(host.experts.latency_s or 0.0) if touched else 0.0}
        experts = self._on_cpu(host.experts, share(routed_flops), share(moved) if touched else 0.0, each, fixed)
        return _one_behind_the_other(self._attention_of_host_layer(task), others, experts)

    def _attention_of_host_layer(self, task: Task) -> Work:
        if task.step > 0:
            return self._attn(task)
        layer, one, share = self._sizes.layer(task), self._sizes.micro_batch(task), self._sizes.share
        moved = self._prompt_attention_bytes(layer, one)
        kernel, fixed = self._hardware.host.attention, {"launch latency": float(self._hardware.host.launch_latency_s)}
        flops = share(layer.attention.prompt_flops(one.prompt_tokens, one.prompt_tokens_squared))
        return self._on_cpu(kernel, flops, share(moved), one.prompt_tokens, fixed)

    def _head(self, task: Task) -> Work:
        requests, share = self._sizes.micro_batch(task).num_requests, self._sizes.share
        kernel = self._hardware.device.head or self._hardware.device.gemm
        flops, moved = share(self._model.head_flops(requests)), share(self._model.head_bytes(self._widths))
        padding = self._padding.head(self._model, requests)
        return self._on_gpu(task, KernelWork(flops, moved, kernel, tokens=requests, padding=padding))

    def _on_gpu(self, task: Task, *parts: KernelWork) -> Work:
        device, memory = self._hardware.device, self._hardware.device_memory
        roofs: dict[str, float] = {"launch latency": float(device.launch_latency_s)}
        compute_s = memory_s = 0.0
        for work in parts:
            ratio = work.efficiency.time_ratio(work.tokens)
            fixed_s = work.efficiency.latency_s or 0.0
            roofs["launch latency"] += (work.launches - 1 + ratio) * fixed_s if work.launches else 0.0
            compute = work.padding * work.flops / (device.peak_flops_per_s * work.efficiency.compute)
            traffic = work.bytes / (memory.bandwidth_bytes_per_s * work.efficiency.memory)
            roof = "device compute" if compute >= traffic else "device memory"
            hidden = 1.0 if work.efficiency.overlap is None else work.efficiency.overlap
            seconds = max(compute, traffic) + (1.0 - hidden) * min(compute, traffic)
            roofs[roof] = roofs.get(roof, 0.0) + ratio * seconds
            compute_s, memory_s = compute_s + ratio * compute, memory_s + ratio * traffic
        moved, flops = sum(work.bytes for work in parts), sum(work.flops for work in parts)
        work_of_all = Work(roofs, {hbm(task.lane.rank): moved}, moved, flops)
        return work_of_all._replace(compute_s=compute_s, memory_s=memory_s)

    def _on_cpu(
        self,
        kernel: Efficiency,
        flops: float,
        moved: float,
        tokens: float,
        fixed: dict[str, float],
        slowdown: float = 1.0,
    ) -> Work:
        """What the host computes beside its memory, after some `fixed` times. One task can use all cores."""
        host, memory = self._hardware.host, self._hardware.host_memory
        compute = flops / (host.peak_flops_per_s * kernel.compute)
        traffic = moved / (memory.bandwidth_bytes_per_s * kernel.memory)
        roof = "host compute" if compute >= traffic else "host memory"
        slower = slowdown * kernel.time_ratio(tokens)
        roofs = {**fixed, roof: slower * max(compute, traffic)}
        awake_s = fixed.get("request overhead", 0.0)  # in loops of a few numbers each
        work = Work(roofs, {DRAM: moved}, moved, flops, held=((CPU_CORES, ALL_CORES),))
        return work._replace(compute_s=slower * compute, memory_s=awake_s + slower * traffic)

    def _passes(self, layer: Layer) -> float:
        """Bytes that attention on the host moves per byte of KV cache. A kernel that was measured reads it in place."""
        if not self._sizes.schedule.system.expands_cache or self._hardware.host.decode_attention is not None:
            return 1.0
        return 1.0 + EXPANDED_PASSES * layer.attention.group * WORKSPACE_BITS / self._sizes.kv_bits

    def _all_reduce(self, task: Task) -> Work:
        """Ring all-reduce of the hidden states: each rank sends and receives 2 (r − 1) / r of them."""
        network, ranks = self._hardware.network, self._sizes.ranks
        assert network is not None, "several devices have a network"
        shape, hidden = self._sizes.shape, self._sizes.hidden_bytes(task)
        if task.page == EXPERTS_SUM and shape.splits_experts(task.step) and shape.experts[task.layer]:
            hidden = self._sizes.group_tokens(task) * self._sizes.layer(task).hidden_bytes_per_token(self._bits)
        moved = 2 * (ranks - 1) / ranks * hidden
        roofs = {"network latency": float(network.latency_s), "network": moved / network.bandwidth_bytes_per_s}
        return Work(roofs, {}, moved)


def _one_behind_the_other(*works: Work) -> Work:
    """Several pieces of work of one task on the host."""
    roofs: dict[str, float] = {}
    traffic: dict[int, float] = {}
    for one in works:
        for roof, seconds in one.roofs.items():
            roofs[roof] = roofs.get(roof, 0.0) + seconds
        for pool, size in one.traffic.items():
            traffic[pool] = traffic.get(pool, 0.0) + size
    moved, flops = sum(one.moved for one in works), sum(one.flops for one in works)
    compute_s, memory_s = sum(one.compute_s for one in works), sum(one.memory_s for one in works)
    return Work(roofs, traffic, moved, flops, works[0].held, compute_s, memory_s)
