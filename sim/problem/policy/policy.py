"""The policy: how a batch is cut up and what lives where. The schedule says in which order; the policy, how much."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from sim.problem.model import Model
from sim.problem.policy.fields import PolicyFields
from sim.problem.policy.splits import ROUNDING, Split, splits_of
from sim.problem.policy.widths import widths_of
from sim.problem.widths import Widths, WidthsApart
from sim.schedule import ExpertPlace, PipelineShape, Place, Schedule, System
from traces.cli import SCHEMA
from traces.errors import InputError, check_count, check_keys, check_text, error_prefix, shown
from traces.files import read_object

_OF_PLACES = frozenset(
    {
        "attention_on_device",
        "experts_on_host",
        "experts_fetched",
        "deal_experts",
        "host_layers",
        "layers_on_host",
        "groups",
        "prefill_experts",
        "stream_non_experts",
        "defer_experts",
    }
)

LOCK_UNIT_BYTES = 4096
"""Memory is page-locked in whole pages of the system."""


@dataclass(frozen=True, slots=True)
class Policy(PolicyFields):
    """A policy with what follows from its fields: which pipeline a schedule makes of a model, and what lives where."""

    @classmethod
    def usual(cls, schedule: Schedule, batch_size: int, micro_batch_size: int, **given: Any) -> Self:
        """A policy with the places that the schedule usually works with, and `given` fields on top."""
        usual = {"attention": schedule.system.attention[0], "kv_on_device": float(schedule.system.kv_on_device)}
        return cls(batch_size, micro_batch_size, **{**usual, **given})

    @property
    def changes_outputs(self) -> str:
        """What makes the model say something else than it would, in words; nothing if all it does is exact."""
        return f"defer_experts {self.defer_experts} changes the model's outputs" if self.defer_experts else ""

    @property
    def num_micro_batches(self) -> int:
        """N = ⌈N / μ⌉; the last micro-batch may be smaller."""
        return -(-self.batch_size // self.micro_batch_size)

    def __str__(self) -> str:
        return f"{self.micro_batch_size}×{self.num_micro_batches}"

    def resident_requests(self, num_requests: int) -> int:
        """Whole requests of a micro-batch whose KV cache stays on the device, its first ones: as FlexGen rounds."""
        return int(num_requests * self.kv_on_device + ROUNDING)

    def attending_on_device(self, num_micro_batches: int) -> int:
        """Whole micro-batches that attend on the device beside others on the CPU."""
        return int(num_micro_batches * self.attention_on_device + ROUNDING)

    def widths(self, model: Model) -> Widths:
        """Widths of the weights: the model's own where the policy does not set them apart."""
        return widths_of(model, self.weight_bits)

    def cache_bits(self, model: Model) -> float:
        """Width of the KV cache's numbers."""
        return model.activation_bits if self.kv_bits is None else self.kv_bits

    def locked_bytes(self, layer_bytes: int) -> int:
        """How many of a layer's streamed bytes, from the first on, are page-locked: all of them, or whole pages."""
        if self.pin_weights == 1:
            return layer_bytes
        return int(layer_bytes * self.pin_weights) // LOCK_UNIT_BYTES * LOCK_UNIT_BYTES

    def shape(self, schedule: Schedule, model: Model, num_micro_batches: int | None = None) -> PipelineShape:
        """The pipeline this policy makes of the model. Raises InputError where the schedule cannot work so."""
        self.check_deferral(min((layer.top_k for layer in model.layers if layer.num_experts), default=1))
        counts = tuple(layer.num_experts for layer in model.layers)
        shared = tuple(layer.shared is not None for layer in model.layers)
        return self.pipeline(schedule, counts, num_micro_batches, shared=shared)

    def pipeline(
        self,
        schedule: Schedule,
        expert_counts: tuple[int, ...],
        num_micro_batches: int | None = None,
        *,
        shared: tuple[bool, ...] = (),
    ) -> PipelineShape:
        """The pipeline of layers with so many routed experts, some with `shared` ones. Raises InputError as `shape`."""
        self.check_places(schedule)
        system, layers = schedule.system, len(expert_counts)
        for name in ("host_layers", "layers_on_host"):
            given = getattr(self, name)
            if given is not None and given[1] > layers:
                raise InputError(f"{name}: {list(given)} goes beyond the model's {layers} layers")
        n = self.num_micro_batches if num_micro_batches is None else num_micro_batches
        splits = splits_of(self, system, expert_counts)
        others = system.streams_non_experts or self.stream_non_experts
        on_gpu = self.prefills_on(system) is Place.GPU
        leaves_layers = any(split.layer_on_host for split in splits)
        return PipelineShape(
            num_layers=layers,
            num_micro_batches=n,
            num_pages=(self.pages or n) if system.paged else 1,
            attention=self.attention,
            streamed=tuple(not split.layer_on_host and (others or split.streamed > 0) for split in splits),
            streams_non_experts=others,
            streams_kv=self.kv_on_device < 1,
            offloads_hidden=system.offloads_hidden and n > 1 and on_gpu and not leaves_layers,
            weights_pinned=self.pin_weights == 1,
            layers_on_host=self.layers_on_host if leaves_layers and self.layers_on_host else (0, 0),
            attending_on_device=self.attending_on_device(n),
            **(self._split_shape(system, splits, n, shared) if system.splits_experts else {}),
        )

    def prefills_on(self, system: System) -> Place:
        """Where prefill computes the experts of the host."""
        return self.prefill_experts or system.prefill_experts[0]

    def _split_shape(self, system: System, splits: Sequence[Split], n: int, shared: Sequence[bool]) -> dict[str, Any]:
        """What the shape of a pipeline says of experts that are computed where they are."""
        with_shared = [ExpertPlace.DEVICE if one else ExpertPlace(0) for one in shared or [False] * len(splits)]
        places = [
            split.places_apart and split.places_apart | more for split, more in zip(splits, with_shared, strict=True)
        ]
        others, place = system.streams_non_experts or self.stream_non_experts, self.prefills_on(system)
        moves = tuple(
            not split.layer_on_host and (others or bool(split.streamed + split.fetched + split.on_host))
            for split in splits
        )
        return {
            "experts": tuple(places),
            "num_groups": min(n, self.groups or n),
            "prefill_experts": place,
            "streamed_in_prefill": moves if place is Place.GPU else (),
            "defers_experts": self.defer_experts > 0,
        }

    def check_deferral(self, top_k: int) -> None:
        """Raise InputError where no expert of a token would count in its own layer."""
        if self.defer_experts >= max(1, top_k):
            raise InputError(
                f"defer_experts: {self.defer_experts} is not allowed; a token has {top_k} experts, give less"
            )

    def check_places(self, schedule: Schedule) -> None:
        """Raise InputError where the schedule attends, or keeps its KV cache or its experts, elsewhere."""
        kv, elsewhere = f"kv_on_device: {self.kv_on_device:g}", f"is not what {schedule.name} does"
        if self.attention not in schedule.system.attention:
            places = " or ".join(schedule.system.attention)
            raise InputError(f"attention: {self.attention} {elsewhere}; it attends on {places}")
        if schedule.system.kv_on_device and self.kv_on_device < 1:
            raise InputError(f"{kv} {elsewhere}; it keeps it all there: give 1")
        if self.attention is Place.CPU and self.kv_on_device > 0:
            raise InputError(f"{kv} with attention on the cpu, which reads it on the host: give 0")
        if self.attention_on_device:
            mixed = f"attention_on_device: {self.attention_on_device:g}"
            if not schedule.system.mixes_attention:
                raise InputError(f"{mixed} {elsewhere}: leave it out")
            if self.attention is Place.GPU:
                raise InputError(f"{mixed} with attention on the gpu, where all attend already: leave it out")
            if self.layers_on_host:
                raise InputError(f"{mixed} with layers_on_host, which keep every KV cache on the host: leave one out")
        streams = schedule.system.streams_non_experts or self.stream_non_experts
        if streams and 0 < self.experts_on_device < 1:
            given = f"experts_on_device: {self.experts_on_device:g} {elsewhere if not self.stream_non_experts else ''}"
            raise InputError(f"{given.strip()}; all experts of a layer stream with it, or stay: give 0 or 1")
        self._check_expert_places(schedule)

    def _check_expert_places(self, schedule: Schedule) -> None:
        system, place = schedule.system, ExpertPlace
        needs = {
            "experts_on_host": (self.experts_on_host, system.experts & place.HOST and not system.whole_layers),
            "experts_fetched": (self.experts_fetched, system.experts & place.FETCHED),
            "host_layers": (self.host_layers, system.experts & place.HOST),
            "layers_on_host": (self.layers_on_host, system.runs_layers_on_host),
            "groups": (self.groups, system.splits_experts),
            "defer_experts": (self.defer_experts, system.defers_experts),
            "deal_experts": (self.deal_experts, not (system.streams_non_experts or system.whole_layers)),
        }
        for name, (given, allowed) in needs.items():
            if given and not allowed:
                raise InputError(f"{name}: {given} is not what {schedule.name} does: leave it out")
        if self.prefills_on(system) not in system.prefill_experts:
            places = " or ".join(system.prefill_experts)
            raise InputError(
                f"prefill_experts: {self.prefill_experts} is not what {schedule.name} does; it has them on {places}"
            )

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values, `num_micro_batches` with them; of places of experts only what is not usual."""
        ranges = {name: getattr(self, name) for name in ("host_layers", "layers_on_host")}
        values = {**asdict(self), "attention": self.attention.value}
        values |= {name: layers and list(layers) for name, layers in ranges.items()}
        if isinstance(self.weight_bits, WidthsApart):
            values["weight_bits"] = str(self.weight_bits)
        unsaid = {one.name for one in fields(self) if one.name in _OF_PLACES and getattr(self, one.name) == one.default}
        told = {name: value for name, value in values.items() if name not in unsaid}
        return {**told, "num_micro_batches": self.num_micro_batches}

    @classmethod
    def from_dict(cls, table: Mapping[str, Any], schedule: Schedule) -> Self:
        """The policy in a table; places that are not given are the schedule's usual ones. Raises InputError by field.

        `num_micro_batches` may stand for `batch_size`, or beside it if they agree.
        """
        values = dict(table)
        known = [field.name for field in fields(cls)]
        count = values.pop("num_micro_batches", None)
        if count is not None and "batch_size" not in values:
            with error_prefix("num_micro_batches: times "):
                size = check_count("micro_batch_size", values.get("micro_batch_size"))
            values["batch_size"] = check_count("num_micro_batches", count) * size
        check_keys(values, known, ["batch_size", "micro_batch_size"], "policy", "")
        policy = cls.usual(schedule, **values)
        if count is not None and count != policy.num_micro_batches:
            raise InputError(
                f"num_micro_batches: {count} does not agree with batch_size {policy.batch_size} in micro-batches of "
                f"{policy.micro_batch_size}, which are {policy.num_micro_batches}; leave it out"
            )
        return policy


def read_policy_file(path: Path) -> tuple[str | None, dict[str, Any]]:
    """The schedule that a policy file (JSON) is for, if it says so, and the policy's fields. Raises InputError."""
    table = read_object(path)
    schedule, version = table.pop("schedule", None), table.pop("schema", SCHEMA)
    if schedule is not None:
        check_text(f"policy file {path}: schedule", schedule)
    if version != SCHEMA:
        raise InputError(f"policy file {path}: schema {shown(version)} is not known; this version reads {SCHEMA}")
    return schedule, table
