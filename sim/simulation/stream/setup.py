"""A schedule and a policy made ready for a stream: its pipeline, and the room that is left for blocks of KV cache."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from math import ceil, gcd, sqrt
from operator import add
from typing import Self

from sim.admission import (
    BLOCK_TOKENS,
    AdmissionRules,
    Chunk,
    Composition,
    Decoding,
    KvLayers,
    Priority,
    RequestStream,
    attention_slowdown,
)
from sim.cost import MemoryPlan, Shortage, Sizes, plan_memory, usable_bytes
from sim.problem import Batch, MicroBatch, Policy, Problem
from sim.schedule import Holds, MemoryPart, PipelineShape, Place, Schedule, Tier, layout_of
from traces.errors import InputError, check_count

STEP_LEN = 2
"""Tokens of a generation that stands for a step: with a decode step, as what is exchanged with the host needs."""


class StreamRoomError(InputError):
    """A memory is too small for a stream under a policy."""

    def __init__(self, message: str, tier: str) -> None:
        super().__init__(message)
        self.tier = tier


LAST_TOKEN = 1
"""A state is a window of one token whose block is as large as the state."""


@dataclass(frozen=True, slots=True)
class StreamSetup:
    """A policy whose batch is what decodes at a time, with `num_prompts` micro-batches of prompts beside it.

    A stream has no prefill, so experts of the host compute prompts there, too, where the schedule can have it so.
    Raises InputError where the schedule cannot mix, where its KV cache is not on the host, and where no room is left.
    """

    problem: Problem
    schedule: Schedule
    policy: Policy
    prefill_chunk: int
    """Tokens of prompts that each of their micro-batches takes in a step."""
    num_prompts: int = 1
    block_tokens: int = BLOCK_TOKENS
    longest_tokens: int = 0
    """The most KV entries that a request may have; 0 for the longest one of the problem's workload."""
    shape: PipelineShape = field(init=False)
    memory: MemoryPlan = field(init=False)
    """Of the fullest step: all chunks full, all places taken. What is left of the host's is for the KV cache."""
    num_blocks: int = field(init=False)
    """As many blocks of KV cache as the host has room for beside all else."""

    def __post_init__(self) -> None:
        for name in ("prefill_chunk", "num_prompts", "block_tokens"):
            check_count(name, getattr(self, name))
        check_count("longest_tokens", self.longest_tokens, least=0)
        self._check_mixes()
        if not self.longest_tokens:
            workload = self.problem.workload
            object.__setattr__(self, "longest_tokens", workload.max_prompt_tokens + workload.gen_len - 1)
        if Place.CPU in self.schedule.system.prefill_experts:
            object.__setattr__(self, "policy", replace(self.policy, prefill_experts=Place.CPU))
        if self.problem.hardware.link.locked_only:
            object.__setattr__(self, "policy", replace(self.policy, pin_weights=1.0))
        count = self.num_prompts + self.policy.num_micro_batches
        usual = self.policy.shape(self.schedule, self.problem.model, count)
        attending = self.policy.attending_on_device(self.policy.num_micro_batches)
        object.__setattr__(self, "shape", usual.beside_prompts(self.num_prompts, attending))
        object.__setattr__(self, "memory", self._plan())
        object.__setattr__(self, "num_blocks", self._blocks())

    @classmethod
    def under(
        cls, problem: Problem, schedule: Schedule, policy: Policy, rules: AdmissionRules, longest_tokens: int
    ) -> Self:
        """One whose steps are those of other rules: those that an engine went by."""
        return cls(
            problem, schedule, policy, rules.prefill_chunk, rules.num_prompts, rules.block_tokens, longest_tokens
        )

    def holding(self, stream: RequestStream) -> Self:
        """The same with room on the device for the longest request of a stream."""
        return replace(self, longest_tokens=max(one.prompt_tokens + one.most_tokens - 1 for one in stream.requests))

    @property
    def kv_layers(self) -> tuple[KvLayers, ...]:
        """What a block of tokens counts in layers that hold it alike: in proportion to their bytes."""
        sizes, unit = self._kv_bytes_by_window, self._unit_bytes_per_token
        caches = tuple(KvLayers(size // unit, window) for window, size in sizes.items())
        states = -(-self._state_bytes // self.block_bytes)
        return (*caches, KvLayers(states, LAST_TOKEN)) if states else caches

    @property
    def block_bytes(self) -> int:
        """What is counted as one block: where all layers hold alike, a block of tokens' keys and values in all."""
        return self.block_tokens * self._unit_bytes_per_token

    @property
    def _unit_bytes_per_token(self) -> int:
        """What divides all of it; without any cache, what a block holds of the states of one request."""
        return gcd(*self._kv_bytes_by_window.values()) or -(-self._state_bytes // self.block_tokens)

    @property
    def _state_bytes(self) -> int:
        """What all layers keep of a request whatever its context."""
        return self.problem.model.over_layers(lambda layer: layer.attention.state_bytes)

    @property
    def _kv_bytes_by_window(self) -> dict[int | None, int]:
        """Bytes of a token in all layers with one window; entries that stand for several tokens give each its part."""
        model, found = self.problem.model, Counter[int | None]()
        bits = self.policy.cache_bits(model)
        for layer, count in zip(model.distinct_layers, model.layer_counts, strict=True):
            keeping, entry = layer.attention.keeping, layer.kv_bytes_per_token(bits)
            found[keeping.window] += count * entry
            indexed = keeping.window if keeping.stride is None else None
            found[indexed] += count * -(-layer.index_bytes_per_token(bits) // ((keeping.stride or 1) * keeping.pool))
            if keeping.stride is not None:
                found[None] += count * -(-entry // keeping.stride)
        return {window: size for window, size in found.items() if size}

    @property
    def locked_blocks(self) -> float:
        """Share of the blocks that is page-locked: what copies over the link read, where the schedule locks it."""
        if layout_of(self.schedule, self.shape).buffers["kv"].tier is Tier.PINNED:
            return 1.0
        locks = self.schedule.system.pins_kv
        return self.shape.attending_on_device / self.shape.num_decoding if locks else 0.0

    @property
    def full_memory(self) -> MemoryPlan:
        """Of the fullest step, with all blocks taken."""
        cache = self.num_blocks * self.block_bytes
        taken = {Tier.HOST: cache, Tier.PINNED: int(self.locked_blocks * cache)}
        plans = {tier: dict(parts) for tier, parts in self.memory.tiers().items()}
        for tier, size in taken.items():
            plans[tier].pop(MemoryPart.KV_CACHE, None)
            plans[tier] |= {MemoryPart.KV_CACHE: size} if size else {}
        return MemoryPlan(**plans)

    def rules(self, priority: Priority = Priority.ARRIVAL, *, preempts: bool = False) -> AdmissionRules:
        """What admission goes by under this policy."""
        return AdmissionRules(
            self.num_blocks,
            self.policy.micro_batch_size,
            self.policy.num_micro_batches,
            self.prefill_chunk,
            self.num_prompts,
            self.block_tokens,
            priority,
            preempts,
            self.kv_layers,
        )

    def sizes(self, composition: Composition) -> Sizes:
        """What the formulas of cost ask for in a step of this composition, as if it were step 1."""
        decoding = map(add, composition.decoding, composition.ended or repeat(()))
        micro_batches = (*map(_of_prompts, composition.prompts), *map(_of_decoding, decoding))
        earlier = tuple(sum(chunk.start for chunk in chunks) for chunks in composition.prompts)
        return self.sizes_of(micro_batches, earlier)

    def sizes_of(self, micro_batches: Sequence[MicroBatch], earlier: Sequence[int]) -> Sizes:
        """The same of a step whose micro-batches, those of prompts first, are known by their sums only.

        Who decodes has one KV entry more than `prompt_tokens` of its micro-batch say; `earlier` are those that earlier
        chunks of each micro-batch's prompts left.
        """
        problem = self.problem
        given = (self.schedule, self.shape, self.policy, problem.model, Batch(tuple(micro_batches), 0, STEP_LEN))
        slowdown = attention_slowdown(self.block_tokens)
        return Sizes(*given, problem.hardware, problem.routing, tuple(earlier), slowdown)

    def _check_mixes(self) -> None:
        name, devices = self.schedule.name, self.problem.hardware.num_devices
        if not self.schedule.system.mixes:
            raise InputError(f"{name}: its steps cannot carry prompts beside decode; take cgopipe or hybrid")
        if self.policy.kv_on_device:
            raise InputError(f"kv_on_device: {self.policy.kv_on_device:g} in a stream, whose blocks are on the host: 0")
        if devices > 1:
            raise InputError(f"{self.problem.hardware.name}: has {devices} devices; streams are simulated on one")

    def _blocks(self) -> int:
        """What the host has left. Where some of the cache is page-locked, what may be page-locked counts as well."""
        capacity, room = usable_bytes(self.problem.hardware), list[int]()
        holds = {Tier.HOST: 1.0, Tier.PINNED: self.locked_blocks}
        for tier, parts in self.memory.tiers().items():
            used = sum(size for part, size in parts.items() if part != MemoryPart.KV_CACHE)
            share = holds.get(Tier(tier), 0.0)
            needed = used + ceil(share * self.block_bytes)
            if needed > capacity[tier]:
                short = Shortage(tier, needed, capacity[tier])
                raise StreamRoomError(f"{self.schedule.name} in a stream: {short}", tier)
            if share:
                room.append(int((capacity[tier] - used) / (share * self.block_bytes)))
        return min(room)

    def _plan(self) -> MemoryPlan:
        """A prompt's chunk is attended to by as many entries as the longest request has.

        One prompt of a chunk may have earlier ones, which come to the device, as does the cache of those who decode and
        attend there.
        """
        policy, chunk, longest = self.policy, self.prefill_chunk, self.longest_tokens
        size = policy.micro_batch_size
        prompts = MicroBatch(1, chunk, chunk**2, ceil(sqrt(chunk * longest)))
        micro_batches = (prompts,) * self.num_prompts + (MicroBatch(size, size, size, 1),) * policy.num_micro_batches
        of_prompts, of_decoding = MicroBatch(1, longest, 0, 0), MicroBatch(size, size * longest, 0, 0)
        all_there = policy.attention is Place.GPU
        loaded = {Holds.LOADED_CACHE: of_decoding if all_there else of_prompts, Holds.ATTENDED_CACHE: of_decoding}
        batch = Batch(micro_batches, 0, STEP_LEN, sampled=self.problem.workload.sampled)
        return plan_memory(self.schedule, self.shape, policy, self.problem.model, batch, loaded=loaded)


def _of_prompts(chunks: tuple[Chunk, ...]) -> MicroBatch:
    """Chunks of prompts; attention grows with the square of where they end, less that of where they begin."""
    squares = sum((chunk.stop + chunk.padding_tokens) ** 2 - chunk.start**2 for chunk in chunks)
    computed = [chunk.tokens + chunk.padding_tokens for chunk in chunks]
    padding = sum(chunk.padding_tokens for chunk in chunks)
    return MicroBatch(len(chunks), sum(computed), squares, max(computed, default=0), padding)


def _of_decoding(requests: tuple[Decoding, ...]) -> MicroBatch:
    """Requests of which each is in its first decode step, as far as the formulas know."""
    padding = sum(one.padding_tokens for one in requests)
    return MicroBatch(len(requests), sum(one.context_tokens - 1 for one in requests) + padding, 0, 0, padding)
