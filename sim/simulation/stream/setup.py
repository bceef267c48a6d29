"""A schedule and a policy made ready for a stream: its pipeline, and the room that is left for blocks of KV cache."""

from dataclasses import dataclass, field, replace

from sim.admission import BLOCK_TOKENS, AdmissionRules, Chunk, Composition, Decoding, Priority
from sim.cost import MemoryPlan, Shortage, Sizes, capacity_bytes, plan_memory
from sim.problem import Batch, MicroBatch, Policy, Problem
from sim.schedule import MemoryPart, PipelineShape, Schedule, Tier
from traces.errors import InputError, check_count

STEP_LEN = 2
"""Tokens of a generation that stands for a step: with a decode step, as what is exchanged with the host needs."""


@dataclass(frozen=True, slots=True)
class StreamSetup:
    """A policy whose batch is what decodes at a time, with `num_prompts` micro-batches of prompts beside it.

    Raises InputError where the schedule cannot mix, where its KV cache is not on the host, and where no room is left.
    """

    problem: Problem
    schedule: Schedule
    policy: Policy
    prefill_chunk: int
    """Tokens of prompts that each of their micro-batches takes in a step."""
    num_prompts: int = 1
    block_tokens: int = BLOCK_TOKENS
    shape: PipelineShape = field(init=False)
    num_blocks: int = field(init=False)
    """As many blocks of KV cache as the host has room for beside all else."""

    def __post_init__(self) -> None:
        for name in ("prefill_chunk", "num_prompts", "block_tokens"):
            check_count(name, getattr(self, name))
        self._check_mixes()
        count = self.num_prompts + self.policy.num_micro_batches
        usual = self.policy.shape(self.schedule, self.problem.model, count)
        object.__setattr__(self, "shape", replace(usual, num_prompts=self.num_prompts, offloads_hidden=False))
        object.__setattr__(self, "num_blocks", self._blocks())

    @property
    def block_bytes(self) -> int:
        """One block of a request: its tokens' keys and values in all layers."""
        model = self.problem.model
        bits = self.policy.cache_bits(model)
        return self.block_tokens * model.over_layers(lambda layer: layer.kv_bytes_per_token(bits))

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
        )

    def sizes(self, composition: Composition) -> Sizes:
        """What the formulas of cost ask for in a step of this composition, as if it were step 1."""
        problem = self.problem
        prompts = [_of_prompts(chunks) for chunks in composition.prompts]
        micro_batches = (*prompts, *map(_of_decoding, composition.decoding))
        earlier = tuple(sum(chunk.start for chunk in chunks) for chunks in composition.prompts)
        batch = Batch(micro_batches, 0, STEP_LEN)
        return Sizes(
            self.schedule, self.shape, self.policy, problem.model, batch, problem.hardware, problem.routing, earlier
        )

    def _check_mixes(self) -> None:
        name, devices = self.schedule.name, self.problem.hardware.num_devices
        if not self.schedule.system.mixes:
            raise InputError(f"{name}: its steps cannot carry prompts beside decode; take cgopipe or hybrid")
        if self.policy.kv_on_device:
            raise InputError(f"kv_on_device: {self.policy.kv_on_device:g} in a stream, whose blocks are on the host: 0")
        if devices > 1:
            raise InputError(f"{self.problem.hardware.name}: has {devices} devices; streams are simulated on one")

    def _blocks(self) -> int:
        """What the host has left. Where the cache is page-locked, what may be page-locked counts as well."""
        hardware = self.problem.hardware
        plan = self._plan()
        capacity, room = capacity_bytes(hardware), list[int]()
        for tier, parts in plan.tiers().items():
            used = sum(size for part, size in parts.items() if part != MemoryPart.KV_CACHE)
            holds_cache = tier == Tier.HOST or (tier == Tier.PINNED and MemoryPart.KV_CACHE in parts)
            needed = used + (self.block_bytes if holds_cache else 0)
            if needed > capacity[tier]:
                raise InputError(f"{self.schedule.name} in a stream: {Shortage(tier, needed, capacity[tier])}")
            if holds_cache:
                room.append((capacity[tier] - used) // self.block_bytes)
        return min(room)

    def _plan(self) -> MemoryPlan:
        """The memory of the fullest step: all chunks full, all places taken."""
        policy, chunk = self.policy, self.prefill_chunk
        decoding = MicroBatch(policy.micro_batch_size, policy.micro_batch_size, policy.micro_batch_size, 1)
        prompts = MicroBatch(1, chunk, chunk**2, chunk)
        batch = Batch((prompts,) * self.num_prompts + (decoding,) * policy.num_micro_batches, 0, STEP_LEN)
        return plan_memory(self.schedule, self.shape, policy, self.problem.model, batch)


def _of_prompts(chunks: tuple[Chunk, ...]) -> MicroBatch:
    """Chunks of prompts; attention grows with the square of where they end, less that of where they begin."""
    squares = sum(chunk.stop**2 - chunk.start**2 for chunk in chunks)
    longest = max((chunk.tokens for chunk in chunks), default=0)
    return MicroBatch(len(chunks), sum(chunk.tokens for chunk in chunks), squares, longest)


def _of_decoding(requests: tuple[Decoding, ...]) -> MicroBatch:
    """Requests of which each is in its first decode step, as far as the formulas know."""
    return MicroBatch(len(requests), sum(one.context_tokens - 1 for one in requests), 0, 0)
