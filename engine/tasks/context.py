"""What tasks are given: of the whole run, of a run whose model is on its device, and of one batch."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from transformers import PreTrainedModel

from engine.device import Device, Ledger, RankSums
from engine.host import HostAttention, HostThreads
from engine.memory import (
    Activations,
    Buffers,
    HostBlocks,
    HostCopy,
    PackedLayer,
    StreamedLayer,
    WeightStream,
    packed_layers,
    streamed_layers,
)
from engine.model import Anatomy, InFlight, KeysValues, end_tokens
from engine.tasks.attend import DecodeAttention
from sim.admission import AdmissionRules
from sim.problem import Policy, Routing, splits_of
from sim.schedule import MemoryPart, PipelineShape, Place, Schedule, SlotLayout, Task, layout_of, of_one_rank
from traces.errors import InputError


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """What `generate()` is asked for, the same for every micro-batch, and the most tokens of any request.

    `seed` is that of request 0; request i draws as if it were generated alone after `torch.manual_seed(seed + i)`.
    """

    max_new_tokens: int
    pad_token_id: int
    kwargs: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class RunContext:
    """What stays the same from batch to batch. `host` counts host memory without what is page-locked."""

    model: PreTrainedModel
    schedule: Schedule
    policy: Policy
    device: Device
    options: GenerationOptions
    anatomy: Anatomy
    streamed: list[StreamedLayer | None]
    """Per layer, what of it lives on the host."""
    packed: list[PackedLayer | None]
    """Per layer, its routed experts where they are stored in fewer bits than the model has."""
    host: Ledger = field(default_factory=lambda: Ledger("host memory", None))
    rules: AdmissionRules | None = None
    """What a stream of requests goes by; None: batch after batch."""
    sums: RankSums | None = None
    """Where this is one of several ranks, what it adds up with the others; None: one device."""

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        schedule: Schedule,
        policy: Policy,
        device: Device,
        options: GenerationOptions,
        routing: Routing | None = None,
        rules: AdmissionRules | None = None,
        sums: RankSums | None = None,
    ) -> Self:
        """Opens the model; experts are placed by their popularity in `routing`. With `rules`, for a stream.

        With `sums` as one of several ranks, whose share the model has already.

        Raises InputError if the engine cannot run it, or cannot run it by this policy.
        """
        policy.check_places(schedule)
        if policy.kv_bits is not None:
            raise InputError("kv_bits: the engine keeps the KV cache at the model's own width: leave it out")
        _check_in_host_memory(model)
        anatomy = Anatomy.of(model)
        splits = splits_of(policy, schedule.system, anatomy.expert_counts)
        prefill_on_host = policy.prefills_on(schedule.system) is Place.CPU
        packed = packed_layers(model, anatomy, policy.weight_bits, splits, prefill_on_host=prefill_on_host)
        orders = _orders(routing or Routing(), model, anatomy)
        streamed = streamed_layers(model, anatomy, policy, schedule, packed, orders)
        return cls(model, schedule, policy, device, options, anatomy, streamed, packed, rules=rules, sums=sums)

    def steps(self, shape: PipelineShape, first: int, stop: int, *, last: int | None = None) -> Iterator[list[Task]]:
        """The tasks of the schedule that are this process's, step by step."""
        steps = self.schedule.steps(shape, first, stop, last=last)
        return steps if self.sums is None else of_one_rank(steps, self.sums.rank.index, self.sums.rank.count)

    @property
    def ends(self) -> set[int]:
        """Tokens that end a sequence."""
        return end_tokens(self.model, self.options.kwargs.get("eos_token_id"))

    @property
    def locked_bytes(self) -> list[int]:
        """Per layer, the first of its bytes on the host, which are page-locked there."""
        return [0 if layer is None else self.policy.locked_bytes(layer.moved_bytes) for layer in self.streamed]

    @property
    def memories(self) -> dict[str, Ledger]:
        """The accounts of every tier."""
        return {"device": self.device.memory, "pinned": self.device.pinned, "host": self.host}

    def shape(self, num_micro_batches: int) -> PipelineShape:
        """The pipeline that so many micro-batches make, in a stream with those that carry prompts before them."""
        self.policy.check_deferral(self.anatomy.top_k)
        counts, shared = self.anatomy.expert_counts, self.anatomy.shared
        num_prompts = 0 if self.rules is None else self.rules.num_prompts
        usual = self.policy.pipeline(self.schedule, counts, num_prompts + num_micro_batches, shared=shared)
        return usual if self.rules is None else usual.beside_prompts(num_prompts)

    def most_tokens(self, micro_batch: int) -> int:
        """The most tokens that a micro-batch has in a step after the first: in a stream some carry prompts."""
        if self.rules is not None and micro_batch < self.rules.num_prompts:
            return self.rules.prefill_chunk
        return self.policy.micro_batch_size

    def layout(self, num_micro_batches: int) -> SlotLayout:
        """Which slots the tasks of such a batch read and write."""
        return layout_of(self.schedule, self.shape(num_micro_batches))


def _orders(routing: Routing, model: PreTrainedModel, anatomy: Anatomy) -> list[Sequence[int]]:
    """Per layer its routed experts, the most popular first. Raises InputError for what was counted on other experts."""
    measured = routing.histogram.layers if routing.histogram else [None] * len(anatomy.layers)
    told = tuple(0 if layer is None else layer.num_experts for layer in measured)
    if routing.histogram and told != anatomy.expert_counts:
        raise InputError(
            f"routing {routing}: counts {max(told, default=0)} experts in each of {sum(map(bool, told))} layers, and "
            f"{type(model).__name__} has {anatomy.num_experts} in {sum(map(bool, anatomy.expert_counts))}: give one "
            f"that was recorded with this model"
        )
    return [routing.order(i, count) for i, count in enumerate(anatomy.expert_counts)]


def _check_in_host_memory(model: PreTrainedModel) -> None:
    for name, parameter in model.named_parameters():
        if parameter.device.type != "cpu":
            raise InputError(
                f"model: {name} is on {parameter.device}, but the engine places a model itself: load it into host "
                f"memory, without a device map"
            )


@dataclass(frozen=True, slots=True)
class Session:
    """A run whose model is on its device."""

    run: RunContext
    weights: WeightStream
    kernel: HostAttention
    host_blocks: HostBlocks
    """Host memory beside the weights, which stays from batch to batch."""
    host_copy: HostCopy
    """For what the lane to the host puts in its place there."""
    device_threads: HostThreads | None
    """Threads of the host that are the device; None if it is a real one."""

    @property
    def host_memory(self) -> dict[str, dict[str, int]]:
        """Bytes of host memory by what they hold, and of these what is page-locked and what is pageable."""
        layers = [layer for layer in self.run.streamed if layer]
        locked, staging = sum(self.run.locked_bytes), self.weights.staging_bytes
        held, on_host = sum(one.num_bytes for one in layers), sum(one.host_bytes for one in layers)
        of_host = sum(max(0, self.run.policy.locked_bytes(one.moved_bytes) - one.host_start) for one in layers)
        weights = {
            MemoryPart.STREAMED_WEIGHTS: {"locked": locked - of_host, "pageable": held - on_host - locked + of_host},
            MemoryPart.HOST_EXPERTS: {"locked": of_host, "pageable": on_host - of_host},
            MemoryPart.STAGING: {"locked": staging, "pageable": 0},
        }
        return {part.value: held for part, held in weights.items()} | self.host_blocks.bytes_by_part()


class Carried(ABC):
    """What the micro-batches of a schedule carry, step by step."""

    @abstractmethod
    def of(self, task: Task) -> InFlight | None:
        """Whom a task works for, or the first one of whose group; None where it has nothing to do."""

    @property
    @abstractmethod
    def over(self) -> bool:
        """Whether nothing is left to do although tasks remain."""

    @abstractmethod
    def in_flight(self) -> Iterable[InFlight]:
        """Those that may have begun, and not ended."""

    @abstractmethod
    def most_tokens(self, micro_batch: int, *, prompts: bool) -> int:
        """The most tokens that a micro-batch has in a step: of prompts, padding included, or one of each request."""

    @property
    @abstractmethod
    def most_requests(self) -> int:
        """Of the largest micro-batch."""

    @abstractmethod
    def most_cached_tokens(self, window: int | None, *, on_host: bool = False) -> int:
        """Tokens that the cache of a micro-batch may come to hold in a layer, of the one that needs most.

        `on_host`: those of the requests whose cache does not stay on the device.
        """


@dataclass(frozen=True, slots=True)
class BatchContext:
    """What the tasks of a run share while some requests are in: their slots, and who is in."""

    session: Session
    layout: SlotLayout
    carried: Carried
    attention: DecodeAttention
    buffers: Buffers
    activations: Activations
    on_head: Callable[[InFlight], None] = lambda micro_batch: None
    """Told of each micro-batch whenever it has new tokens."""

    def routed_tokens(self, group: int, *, in_decode: bool = False) -> int:
        """The most tokens of a group whose experts are computed together, apart from their layer."""
        shape = self.layout.shape
        prompts = shape.splits_experts(0) and not in_decode
        return sum(self.carried.most_tokens(j, prompts=prompts) for j in shape.group(group))

    def most_cached_numbers(self, name: str, layer: int, width: int, *, on_host: bool = False) -> int:
        """Numbers that the keys, or values, of a micro-batch may come to have: in the layer that needs most.

        That is known of layers that show how wide theirs are; `layer` has `width` for each token.
        """
        anatomy, part = self.session.run.anatomy, KeysValues._fields.index(name)
        widths = {i: widths[part] for i, widths in enumerate(anatomy.kv_widths) if widths} | {layer: width}
        most = {window: self.carried.most_cached_tokens(window, on_host=on_host) for window in set(anatomy.windows)}
        return max(most[anatomy.windows[i]] * width for i, width in widths.items())

    @property
    def most_routed_tokens(self) -> int:
        """The same of the group that has most."""
        return max(self.routed_tokens(group) for group in range(self.layout.shape.num_groups))

    @property
    def most_prompt_tokens(self) -> int:
        """Tokens of the prompts of the largest micro-batch, padding included."""
        return max(self.carried.most_tokens(j, prompts=True) for j in range(self.layout.shape.num_micro_batches))
