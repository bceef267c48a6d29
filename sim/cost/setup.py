"""One schedule and one policy on one problem, made ready to run: batch, pipeline, memory plan and costs."""

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Self

from sim.cost.durations import CostModel
from sim.cost.memory import MemoryPlan, Shortage, pageable_copies, plan_memory, tensor_ranks
from sim.cost.products import dropped_share, expert_capacity
from sim.cost.sizes import Sizes
from sim.problem import Batch, Placement, Policy, Problem, Workload, make_batch
from sim.schedule import ON_DEVICE, PipelineShape, Schedule, by_name
from traces.errors import InputError


@lru_cache(maxsize=8192)
def _batch(workload: Workload, batch_size: int, micro_batch_size: int) -> Batch:
    """The batch of the last policies seen: a grid asks for each of its thousands once more for each placement."""
    return make_batch(workload, batch_size, micro_batch_size)


@dataclass(frozen=True, slots=True)
class Setup:
    """A schedule with a policy on a problem. Raises InputError where the schedule cannot work as the policy says."""

    problem: Problem
    schedule: Schedule
    policy: Policy
    given_batch: Batch | None = None
    """What runs, instead of the batch that Algorithm 2 makes of the workload: a run that was measured."""
    batch: Batch = field(init=False)
    shape: PipelineShape = field(init=False)
    memory: MemoryPlan = field(init=False)

    def __post_init__(self) -> None:
        problem, policy = self.problem, self.policy
        batch = self.given_batch or self._batch()
        shape = policy.shape(self.schedule, problem.model, len(batch.micro_batches))
        if self.given_batch is None and self.schedule.system.one_batch and len(batch.micro_batches) > 1:
            raise InputError(
                f"num_micro_batches: {len(batch.micro_batches)} is not what {self.schedule.name} does, which runs all "
                f"requests as one: give micro_batch_size {policy.batch_size}"
            )
        memory = plan_memory(self.schedule, shape, policy, problem.model, batch, problem.hardware.num_devices)
        object.__setattr__(self, "batch", batch)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "memory", memory)

    @classmethod
    def of(cls, problem: Problem, schedule: str, **policy: Any) -> Self:
        """A schedule by its name and the fields of its policy, such as `micro_batch_size=36, num_micro_batches=14`."""
        return cls(problem, by_name(schedule), Policy.from_dict(policy, by_name(schedule)))

    def _batch(self) -> Batch:
        size, parts = self.policy.batch_size, self.num_parts
        batch = _batch(self.problem.workload, -(-size // parts), self.policy.micro_batch_size)
        return replace(batch, copies=parts) if parts > 1 else batch

    @property
    def num_parts(self) -> int:
        """Devices that each work on a part of the requests."""
        return self.problem.hardware.num_devices if self.schedule.system.splits_batch else 1

    @property
    def num_ranks(self) -> int:
        """Devices that are simulated: all that share each tensor, or one of those that each do their own requests."""
        return tensor_ranks(self.schedule, self.problem.hardware.num_devices)

    @property
    def placement(self) -> Placement:
        """Where the experts of each layer are."""
        return Placement.of(self.policy, self.schedule, self.problem.model)

    @property
    def shortages(self) -> list[Shortage]:
        """Memories that the policy does not fit, and what it would have to page-lock; empty if it is feasible."""
        return [*self.memory.shortages(self.problem.hardware), *self.pageable]

    @property
    def pageable(self) -> list[Shortage]:
        """What it copies from or to pageable memory, on a machine that has no such copies."""
        if not self.problem.hardware.link.locked_only:
            return []
        return [*pageable_copies(self.schedule, self.shape, self.policy, self.placement, self.memory)]

    def require_fit(self) -> None:
        """Raise InputError, naming the memory and the bytes it is short of, if the policy does not fit."""
        if self.shortages:
            short = "; ".join(map(str, self.shortages))
            raise InputError(
                f"{self.schedule.name} with policy {self.policy} does not fit {self.problem.hardware.name}: {short}"
            )

    @property
    def dropped_share(self) -> float:
        """Of what a decode step asks of routed experts on the device, what is beyond their capacity, in most of layers.

        Of the most tokens that go to experts at once; nothing where experts compute what comes.
        """
        ratio, shape = self.problem.hardware.device.expert_capacity_ratio, self.shape
        if ratio is None or not self.placement.experts_bytes(ON_DEVICE):
            return 0.0
        requests = [one.num_requests for one in self.batch.micro_batches]
        at_once = map(shape.group, range(shape.num_groups)) if shape.experts else ((j,) for j in range(len(requests)))
        tokens = max(sum(requests[j] for j in mine) for mine in at_once)
        found = Counter[float]()
        for at, layer in enumerate(self.problem.model.layers):
            if layer.num_experts:
                capacity = expert_capacity(tokens, layer.top_k, layer.num_experts, ratio)
                found[dropped_share(self.problem.routing.popularity(at, layer), tokens, capacity)] += 1
        return max(found, key=lambda share: found[share], default=0.0)

    @property
    def last_step(self) -> int:
        """Number of decode steps: prefill gives the first token."""
        return self.problem.workload.gen_len - 1

    def costs(self, *, only_contended: bool = False) -> CostModel:
        """A cost model for this run, with all demands or only those that can slow a task down."""
        model, hardware = self.problem.model, self.problem.hardware
        routing = self.problem.routing
        sizes = Sizes(self.schedule, self.shape, self.policy, model, self.batch, hardware, routing)
        return CostModel(sizes, only_contended=only_contended)
