"""What goes over the link or through pinned staging: activations, KV cache, and weights in pages or whole."""

from collections.abc import Callable

from sim.cost.memory import CacheContent, routed_bytes
from sim.cost.pools import DRAM, PAGEABLE_TRAFFIC, PIN_TRAFFIC, hbm, link
from sim.cost.sizes import Sizes, fetches_modules
from sim.cost.work import Cost, Work
from sim.schedule import KV_OVER_LINK, WHOLE, ExpertPlace, LaneKind, Op, Task, Tier, layout_of

MODULES_OF_NETWORK = 3
"""Gate, up and down projection of an expert, or of another feed-forward network."""
MODULES_OF_REST = 7
"""Four projections of attention, the router, two norms."""


class Copies:
    """The formulas of copies, by op."""

    def __init__(self, sizes: Sizes) -> None:
        self._sizes, self._hardware = sizes, sizes.hardware
        self._bits = sizes.model.activation_bits
        buffers = layout_of(sizes.schedule, sizes.shape).buffers
        self._locked = {name for name, buffer in buffers.items() if buffer.tier is Tier.PINNED}
        self._loaded_cache = KV_OVER_LINK if sizes.shape.num_prompts and sizes.shape.attending_on_device else "kv"
        self._hidden_on_host = "hidden of host layers" if sizes.shape.runs_on_host else "hidden on host"
        self._gatherers = sizes.parts if sizes.schedule.system.gathers_weights else 1
        self.formulas: dict[Op, Callable[[Task], Work]] = {
            Op.OFFLOAD_QKV: self._offload_qkv,
            Op.LOAD_HIDDEN: self._load_hidden,
            Op.STORE_HIDDEN: lambda task: self._copy_between(self._hidden_on_host, task, sizes.hidden_bytes(task)),
            Op.LOAD_WEIGHTS: lambda task: self._copy(task, self._own_bytes(task)),
            Op.LOAD_WEIGHTS_PAGEABLE: self._load_in_place,
            Op.PIN_WEIGHTS: self._pin_weights,
            Op.LOAD_KV: self._load_kv,
            Op.STORE_KV: self._store_kv,
            Op.OFFLOAD_TOKENS: self._offload_tokens,
            Op.LOAD_OUTPUT: self._load_output,
            Op.FETCH_EXPERTS: self._fetch_experts,
        }

    def _offload_qkv(self, task: Task) -> Work:
        """Query, keys and values, one after the other."""
        per_token = self._sizes.share(self._sizes.layer(task).qkv_bytes_per_token(self._bits))
        return self._copy_between("qkv on host", task, self._sizes.tokens(task) * per_token, copies=3)

    def _load_hidden(self, task: Task) -> Work:
        """Decode: what CPU attention returns, each rank its heads. Else the hidden states, whole on each rank."""
        if task.step == 0 or self._sizes.placement.splits[task.layer].layer_on_host:
            return self._copy_between(self._hidden_on_host, task, self._sizes.hidden_bytes(task))
        per_token = self._sizes.share(self._sizes.layer(task).attention_output_bytes_per_token(self._bits))
        return self._copy_between("attention on host", task, self._sizes.tokens(task) * per_token)

    def _load_kv(self, task: Task) -> Work:
        """All of a request's cache; to prompts only what earlier chunks of them left."""
        if self._sizes.has_prompts(task):
            return self._copy_between("kv", task, self._kv_bytes(task, self._sizes.earlier(task)), 2)
        size = self._kv_bytes(task, self._sizes.kept(task, task.step - 1))
        return self._copy_between(self._loaded_cache, task, size, 2)

    def _store_kv(self, task: Task) -> Work:
        """Into the cache, or into a page-locked buffer, from where the lane copies it into the cache.

        At the pageable rate one more copy on the host is in that rate already.
        """
        prompts = self._sizes.has_prompts(task)
        size = self._kv_bytes(
            task, self._sizes.kept(task, 0) if prompts else CacheContent.new(self._sizes.tokens(task))
        )
        if "new kv on host" not in self._locked:
            return self._copy_between("kv", task, size, copies=2)
        landed = self._copy_between("new kv on host", task, size, copies=2)
        roofs = {**landed.roofs, "host copy": size / self._hardware.staging_bytes_per_s}
        traffic = {**landed.traffic, DRAM: (1 + PIN_TRAFFIC) * size}
        return landed._replace(roofs=roofs, traffic=traffic, copied=PIN_TRAFFIC * size)

    def _kv_bytes(self, task: Task, kept: CacheContent) -> float:
        """What is kept, less what stays on the device."""
        stays = kept.on_device(self._sizes.policy, self._sizes.micro_batch(task))
        layer = self._sizes.layer(task)
        return self._sizes.share_of_cache(layer, kept.without(stays).bytes(layer, self._sizes.kv_bits))

    def _pin_weights(self, task: Task) -> Work:
        """What of a page is not page-locked into staging: of some pages nothing, and then only the launch is left."""
        size, latency_s = self._staged_bytes(task), float(self._hardware.host.launch_latency_s)
        roofs = {"launch latency": latency_s, "pin copy": size / self._hardware.staging_bytes_per_s}
        return Work(roofs, {DRAM: PIN_TRAFFIC * size}, size, copied=PIN_TRAFFIC * size)

    def _load_in_place(self, task: Task) -> Work:
        """Weights from where they live: what is page-locked as such, the rest pageable."""
        own, staged = self._own_bytes(task), self._staged_bytes(task) / self._gatherers
        if not fetches_modules(self._sizes.schedule, self._hardware):
            return self._copy(task, own, staged)
        used, modules = self._used_modules(task)
        return self._copy(task, used * own, used * staged, modules)

    def _used_modules(self, task: Task) -> tuple[float, int]:
        """The share of a layer's streamed bytes that its tokens need, and in how many modules that lies."""
        layer, placement = self._sizes.layer(task), self._sizes.placement
        split = placement.splits[task.layer]
        touched = self._sizes.expert_use.touched(task.layer, self._sizes.all_tokens(task)) if split.streamed else 0.0
        whole = placement.streamed_bytes(placement.kinds[task.layer], in_prefill=task.step == 0)
        idle = (split.streamed - touched) * layer.expert_bytes(placement.widths.experts) if split.streamed else 0.0
        networks = touched + (layer.shared is not None) + (layer.dense is not None)
        return 1.0 - idle / whole, MODULES_OF_REST + round(MODULES_OF_NETWORK * networks)

    def _offload_tokens(self, task: Task) -> Work:
        """Of all tokens of a group the experts and their weights, and what goes into experts if the host has some."""
        layer, tokens = self._sizes.layer(task), self._sizes.group_tokens(task)
        hidden = self._sizes.shape.has_experts(task.layer, ExpertPlace.HOST)
        size = tokens * routed_bytes(layer, self._bits if hidden else 0.0)
        return self._copy_between("routed on host", task, size, copies=2 + hidden)

    def _load_output(self, task: Task) -> Work:
        tokens = self._sizes.group_tokens(task)
        return self._copy_between(
            "output on host", task, tokens * self._sizes.layer(task).routed_bytes_per_token(self._bits)
        )

    def _fetch_experts(self, task: Task) -> Work:
        """Each expert that is asked for, one after the other, from where it lives."""
        layer, placement = self._sizes.layer(task), self._sizes.placement
        count = self._sizes.used(task, ExpertPlace.FETCHED).touched
        size = self._sizes.share(count * layer.expert_bytes(placement.widths.experts))
        moved = placement.moved_bytes(placement.kinds[task.layer])
        pageable = 1.0 - self._sizes.policy.locked_bytes(moved) / max(1, moved)
        return self._copy(task, size, size * pageable, copies=max(1, round(count)))

    def _page_bytes(self, task: Task) -> float:
        """One rank's part of a page."""
        whole = self._sizes.streamed_bytes(task)
        return self._sizes.share(whole if task.page == WHOLE else self._sizes.page_bytes(whole)[task.page])

    def _staged_bytes(self, task: Task) -> float:
        """Of it what is not page-locked."""
        kind = self._sizes.placement.kinds[task.layer]
        staged = self._sizes.staged_page_bytes(self._sizes.streamed_bytes(task), kind)
        return self._sizes.share(sum(staged) if task.page == WHOLE else staged[task.page])

    def _own_bytes(self, task: Task) -> float:
        """Of it what this device fetches from the host."""
        return self._page_bytes(task) / self._gatherers

    def gathered(self, task: Task, cost: Cost) -> Cost:
        """A copy of this device's part of some weights, and then the others from its peers (ZeRO stage 3)."""
        network, own = self._hardware.network, self._own_bytes(task)
        if network is None or self._gatherers == 1:
            return cost
        whole = self._page_bytes(task)
        seconds = network.latency_s + (whole - own) / network.bandwidth_bytes_per_s
        duration_ns = cost.duration_ns + round(seconds * 1e9)
        slower = cost.duration_ns / duration_ns
        demands = tuple((pool, round(amount * slower)) for pool, amount in cost.demands)
        bound, effort = cost.bound if slower > 1 / 2 else "network", cost.effort._replace(network_bytes=whole - own)
        return Cost(duration_ns, demands, round(whole), 0, bound, effort)

    def _copy_between(self, name: str, task: Task, size: float, copies: int = 1) -> Work:
        """Between the device and a buffer on the host."""
        return self._copy(task, size, 0.0 if name in self._locked else size, copies)

    def _copy(self, task: Task, size: float, pageable: float = 0.0, copies: int = 1) -> Work:
        """So many bytes over the link, so many of them from or to memory that is not page-locked."""
        links, rank = self._hardware.link, task.lane.rank
        if task.lane.kind is LaneKind.H2D:
            rate, slow, name = links.h2d_bytes_per_s, links.h2d_pageable_bytes_per_s, "link h2d"
        else:
            rate, slow, name = links.d2h_bytes_per_s, links.d2h_pageable_bytes_per_s, "link d2h"
        locked = size - pageable
        roofs = {"copy latency": copies * links.latency_s, name: locked / rate, f"{name} pageable": pageable / slow}
        through_dram = locked + PAGEABLE_TRAFFIC * pageable
        by_cores = (PAGEABLE_TRAFFIC - 1) * pageable  # the DMA reads what the driver wrote
        return Work(roofs, {DRAM: through_dram, hbm(rank): size, link(rank): size}, size, copied=by_cores)
