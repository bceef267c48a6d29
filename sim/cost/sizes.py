"""How much a task works on: its layer, micro-batch and tokens, the widths of numbers, and one device's share."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

from sim.cost.memory import CacheContent, tensor_ranks
from sim.cost.products import ALIKE, ExpertUse, Padding, expert_capacity
from sim.problem import (
    NO_TILES,
    Batch,
    Hardware,
    Layer,
    MicroBatch,
    Model,
    Placement,
    Policy,
    Routing,
    Use,
    unpacked_experts,
    unpacks_experts,
)
from sim.schedule import DEFERRED, ExpertPlace, PipelineShape, Schedule, Task


def fetches_modules(schedule: Schedule, hardware: Hardware) -> bool:
    """Whether each module's weights come alone.

    Not in our engine, of which an emulated device is part: transformers 5 has all experts of a layer in one parameter.
    """
    return schedule.system.fetches_modules and hardware.emulation is None


@dataclass(frozen=True)
class Sizes:
    """What all formulas of one run ask for."""

    schedule: Schedule
    shape: PipelineShape
    policy: Policy
    model: Model
    batch: Batch
    hardware: Hardware
    routing: Routing = ALIKE
    earlier_tokens: tuple[int, ...] = ()
    """In a stream, of each micro-batch with prompts: KV entries that earlier chunks of them left."""
    host_attention_slowdown: float = 1.0
    """How much longer attention on the host takes than with the KV cache in one piece, or in usual blocks."""

    @cached_property
    def parts(self) -> int:
        """Devices that share the host while each does its own part of the batch."""
        return self.hardware.num_devices if self.schedule.system.splits_batch else 1

    @cached_property
    def ranks(self) -> int:
        """Devices that share each tensor."""
        return tensor_ranks(self.schedule, self.hardware.num_devices)

    @cached_property
    def kv_bits(self) -> float:
        """Width of the KV cache's numbers."""
        return self.policy.cache_bits(self.model)

    @cached_property
    def placement(self) -> Placement:
        """Where the experts of each layer are."""
        return Placement.of(self.policy, self.schedule, self.model)

    @cached_property
    def expert_use(self) -> ExpertUse:
        """What tokens use of them."""
        defers = tuple(self.shape.defers(1, layer) for layer in range(self.shape.num_layers))
        return ExpertUse(self.placement, self.routing, self.schedule.system, defers)

    def layer(self, task: Task) -> Layer:
        return self.model.layers[task.layer]

    def micro_batch(self, task: Task) -> MicroBatch:
        return self.batch.micro_batches[task.micro_batch]

    def tokens(self, task: Task) -> int:
        """Tokens that go through a layer: whole prompts in prefill, one a request in decode."""
        return self._tokens_of(task.step, task.micro_batch)

    def has_prompts(self, task: Task) -> bool:
        """Whether a task works on prompts, instead of one token a request."""
        return self.shape.has_prompts(task.step, task.micro_batch)

    def _tokens_of(self, step: int, micro_batch: int) -> int:
        one = self.batch.micro_batches[micro_batch]
        return one.prompt_tokens if self.shape.has_prompts(step, micro_batch) else one.num_requests

    def earlier(self, task: Task) -> CacheContent:
        """What earlier chunks left in a layer, of the one prompt of a micro-batch that has any."""
        left = self._earlier_of(task.micro_batch)
        return CacheContent.of_context(self.layer(task), left, 1) if left else CacheContent()

    def _earlier_of(self, micro_batch: int) -> int:
        return self.earlier_tokens[micro_batch] if micro_batch < len(self.earlier_tokens) else 0

    @cached_property
    def work(self) -> Sequence[Hashable]:
        """Per micro-batch, all that its work follows from."""
        if not self.shape.num_prompts:
            return self.of_groups
        return [(*one, self.shape.has_prompts(1, j), self._earlier_of(j)) for j, one in enumerate(self.of_groups)]

    def kept(self, task: Task, step: int) -> CacheContent:
        """What the task's layer keeps of its micro-batch after `step`."""
        return CacheContent.of(self.layer(task), self.micro_batch(task), step)

    def hidden_bytes(self, task: Task) -> int:
        """The hidden states of a task's tokens."""
        return self.tokens(task) * self.layer(task).hidden_bytes_per_token(self.model.activation_bits)

    def share(self, whole: float) -> float:
        """One rank's part of what tensor parallelism splits: heads, expert columns, vocabulary."""
        return whole / self.ranks

    def share_of_cache(self, layer: Layer, whole: float) -> float:
        """The same of a layer's cache, whose heads may be fewer than the ranks."""
        return self.share(whole) * layer.attention.cache_copies(self.ranks)

    @cached_property
    def of_groups(self) -> list[tuple[MicroBatch, int, int]]:
        """Per micro-batch, itself and its group's tokens in prefill and later, if it is the first of a group."""
        shape, alone = self.shape, [(one, 0, 0) for one in self.batch.micro_batches]
        for mine in map(shape.group, range(shape.num_groups if shape.experts else 0)):
            prompts, later = (sum(self._tokens_of(step, j) for j in mine) for step in (0, 1))
            alone[mine.start] = (self.batch.micro_batches[mine.start], prompts, later)
        return alone

    def all_tokens(self, task: Task) -> int:
        """Tokens of all micro-batches in a step."""
        return sum(self._tokens_of(task.step, j) for j in range(len(self.batch.micro_batches)))

    def group_tokens(self, task: Task) -> int:
        """Tokens of the group of which the task's micro-batch is the first."""
        _, prompts, later = self.of_groups[task.micro_batch]
        return prompts if task.step == 0 else later

    def used(self, task: Task, places: ExpertPlace) -> Use:
        """What a group's tokens use of a layer's experts in these places; of the host's, in the task's part of them."""
        part = self._part_of_top_k(task) if places is ExpertPlace.HOST else None
        return self.expert_use.of_group(task.layer, self.group_tokens(task), places, part)

    def _part_of_top_k(self, task: Task) -> int | None:
        """How many of each token's experts a task of the host computes; None where none of them is deferred."""
        if not self.shape.defers(task.step, task.layer):
            return None
        late = self.policy.defer_experts
        return late if task.page == DEFERRED else self.layer(task).top_k - late

    @cached_property
    def padding(self) -> Padding:
        """How much more the device computes than it is asked for."""
        return Padding(self.hardware.device.tiles, self.ranks)

    def computed_rows(
        self, layer: int, tokens: float, asked: Use, count: float, places: ExpertPlace | None = None
    ) -> float:
        """Rows that a device's routed experts in these places compute, of which a layer's tokens ask `asked`.

        Where shapes are fixed, `count` experts compute their capacity each; else those that are used what they get.
        """
        tiles, one = self.hardware.device.tiles or NO_TILES, self.model.layers[layer]
        ratio = self.hardware.device.expert_capacity_ratio
        if ratio is None:
            return asked.pairs * self.expert_use.padding(layer, tokens, tiles.expert_tile, places)
        return count * tiles.padded_capacity(expert_capacity(tokens, one.top_k, one.num_experts, ratio))

    def tokens_an_expert(self, task: Task, places: ExpertPlace) -> float:
        """How many tokens of a group each expert gets on average that they use in these places."""
        used = self.used(task, places)
        return max(1.0, used.pairs / max(used.touched, 1e-9))

    def streamed_bytes(self, task: Task) -> int:
        """Bytes of a layer that come over the link when it runs, on all ranks together."""
        return self.placement.streamed_bytes(self.placement.kinds[task.layer], in_prefill=task.step == 0)

    def page_bytes(self, whole: int) -> list[int]:
        """Bytes of each page of a layer; they differ by a byte at most."""
        pages = self.shape.num_pages
        return [whole * (page + 1) // pages - whole * page // pages for page in range(pages)]

    def staged_page_bytes(self, whole: int, kind: int) -> list[int]:
        """Bytes of each page of a layer of this kind that lie behind what is page-locked, so that they are staged."""
        pages, locked = self.shape.num_pages, self.policy.locked_bytes(self.placement.moved_bytes(kind))
        return [max(0, whole * (page + 1) // pages - max(locked, whole * page // pages)) for page in range(pages)]

    @cached_property
    def unpack_bytes_per_s(self) -> float | None:
        """How fast the device unpacks experts before it computes with them; None where it does not, or nobody knows."""
        rate = self.hardware.device.unpack_bytes_per_s
        return rate if unpacks_experts(self.policy, self.model) else None

    @cached_property
    def host_unpack_bytes_per_s(self) -> float | None:
        """How fast the host computes with experts that it unpacks meanwhile; None as above."""
        rate = self.hardware.host.unpack_bytes_per_s
        return rate if unpacks_experts(self.policy, self.model) else None

    def unpacked_in_turn(self, task: Task) -> float:
        """Experts unpacked for a micro-batch in a layer; of those that micro-batches share, an even part.

        In decode a device with a memory of its own is not asked which ones tokens use: it unpacks one for each (token,
        expert) pair, or all of them.
        """
        layer, tokens, turns = self.layer(task), self.tokens(task), self.shape.num_micro_batches
        if turns > 1:
            tokens = self.all_tokens(task)
        if task.step == 0 or self.hardware.emulation is not None:
            return self.expert_use.touched(task.layer, tokens) / turns
        return min(layer.num_experts, layer.num_experts if turns > 1 else tokens * layer.top_k) / turns

    def unpacked_parts(self, task: Task) -> int:
        """In how many parts a micro-batch's unpacked experts are computed: as many as find room at a time."""
        layer, turns = self.layer(task), self.shape.num_micro_batches
        room = unpacked_experts(layer.num_experts, turns, layer.expert_bytes(self.model.activation_bits))
        return max(1, math.ceil(self.unpacked_in_turn(task) / room))
