"""The policy: how a batch is cut up and what lives where. The schedule says in which order; the policy, how much."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from sim.problem.model import Layer, Model
from sim.schedule import PipelineShape, Place, Schedule
from traces.cli import SCHEMA
from traces.errors import (
    InputError,
    check_choice,
    check_count,
    check_keys,
    check_range,
    check_share,
    error_prefix,
)
from traces.files import read_object

MIN_BITS, MAX_BITS = 1.0, 32.0

LOCK_UNIT_BYTES = 4096
"""Memory is page-locked in whole pages of the system."""


@dataclass(frozen=True, slots=True)
class Policy:
    """The paper's (N, μ, A_g, F_g, r_w, r_c) with pages and widths (MoE-Lightning section 4.2).

    `experts_on_device` is r_w: of a layer with E routed experts, int(E · r_w) whole ones stay on the device.
    `kv_on_device` is r_c: of each micro-batch's n requests, int(n · r_c) whole ones keep their KV cache on the device.
    `pages` a layer's streamed weights travel in: None for one per micro-batch.
    `pin_weights`: the share of each layer's streamed bytes, from the first on, that lies in page-locked memory; what
    lies behind it is copied through staging. True and False stand for all and nothing.
    `weight_bits` and `kv_bits` are the widths of stored numbers; None keeps the model's own width.
    Raises InputError naming the field.
    """

    batch_size: int
    micro_batch_size: int
    attention: Place = Place.CPU
    experts_on_device: float = 0.0
    kv_on_device: float = 0.0
    pages: int | None = None
    pin_weights: float = 0.0
    weight_bits: float | None = None
    kv_bits: float | None = None

    def __post_init__(self) -> None:
        check_count("batch-size", self.batch_size)
        check_count("micro-batch-size", self.micro_batch_size)
        if self.pages is not None:
            check_count("pages", self.pages)
        for name in ("experts_on_device", "kv_on_device"):
            check_share(name, getattr(self, name))
        for name in ("weight_bits", "kv_bits"):
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), MIN_BITS, MAX_BITS, "a width in bits")
        object.__setattr__(self, "pin_weights", _share_of_flag("pin_weights", self.pin_weights))
        object.__setattr__(self, "attention", Place(check_choice("attention", self.attention, Place)))
        if self.micro_batch_size > self.batch_size:
            object.__setattr__(self, "micro_batch_size", self.batch_size)

    @classmethod
    def usual(cls, schedule: Schedule, batch_size: int, micro_batch_size: int, **given: Any) -> Self:
        """A policy with the places that the schedule usually works with, and `given` fields on top."""
        usual = {"attention": schedule.system.attention[0], "kv_on_device": float(schedule.system.kv_on_device)}
        return cls(batch_size, micro_batch_size, **{**usual, **given})

    @property
    def num_micro_batches(self) -> int:
        """N = ⌈N / μ⌉; the last micro-batch may be smaller."""
        return -(-self.batch_size // self.micro_batch_size)

    def __str__(self) -> str:
        return f"{self.micro_batch_size}×{self.num_micro_batches}"

    def resident_experts(self, layer: Layer) -> int:
        """Whole routed experts of a layer that stay on the device; m / E as a float is meant to be m of them."""
        return int(layer.num_experts * self.experts_on_device + 1e-9)

    def resident_requests(self, num_requests: int) -> int:
        """Whole requests of a micro-batch whose KV cache stays on the device, its first ones: as FlexGen rounds."""
        return int(num_requests * self.kv_on_device + 1e-9)

    def expert_bits(self, model: Model) -> float:
        """Width of the routed experts' weights."""
        return model.expert_bits if self.weight_bits is None else self.weight_bits

    def cache_bits(self, model: Model) -> float:
        """Width of the KV cache's numbers."""
        return model.activation_bits if self.kv_bits is None else self.kv_bits

    def streamed_bytes(self, schedule: Schedule, model: Model, layer: Layer) -> int:
        """Bytes of one layer that come over the link each time the layer runs, on all devices together."""
        experts = (layer.num_experts - self.resident_experts(layer)) * layer.expert_bytes(self.expert_bits(model))
        return experts + (layer.non_expert_bytes(model.other_bits) if schedule.system.streams_non_experts else 0)

    def locked_bytes(self, layer_bytes: int) -> int:
        """How many of a layer's streamed bytes, from the first on, are page-locked: all of them, or whole pages."""
        if self.pin_weights == 1:
            return layer_bytes
        return int(layer_bytes * self.pin_weights) // LOCK_UNIT_BYTES * LOCK_UNIT_BYTES

    def shape(self, schedule: Schedule, model: Model, num_micro_batches: int | None = None) -> PipelineShape:
        """The pipeline this policy makes of the model. Raises InputError where the schedule cannot work so."""
        streamed = [self.streamed_bytes(schedule, model, layer) > 0 for layer in model.distinct_layers]
        return self.pipeline(schedule, tuple(streamed[kind] for kind in model.layer_kinds), num_micro_batches)

    def pipeline(
        self, schedule: Schedule, streamed: tuple[bool, ...], num_micro_batches: int | None = None
    ) -> PipelineShape:
        """The pipeline of layers of which those `streamed` have weights that stream. Raises InputError as `shape`."""
        self.check_places(schedule)
        n = self.num_micro_batches if num_micro_batches is None else num_micro_batches
        return PipelineShape(
            num_layers=len(streamed),
            num_micro_batches=n,
            num_pages=(self.pages or n) if schedule.system.paged else 1,
            attention=self.attention,
            streamed=streamed,
            streams_non_experts=schedule.system.streams_non_experts,
            streams_kv=self.kv_on_device < 1,
            offloads_hidden=schedule.system.offloads_hidden and n > 1,
            weights_pinned=self.pin_weights == 1,
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
        if schedule.system.streams_non_experts and 0 < self.experts_on_device < 1:
            given = f"experts_on_device: {self.experts_on_device:g} {elsewhere}"
            raise InputError(f"{given}; all experts of a layer stream with it, or stay: give 0 or 1")

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values, `num_micro_batches` with them."""
        return {**asdict(self), "attention": self.attention.value, "num_micro_batches": self.num_micro_batches}

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


def _share_of_flag(name: str, value: object) -> float:
    """A share; a truth is all of it or nothing. Refuses anything else."""
    return float(value if isinstance(value, bool) else check_share(name, value))


def read_policy_file(path: Path) -> tuple[str | None, dict[str, Any]]:
    """The schedule that a policy file (JSON) is for, if it says so, and the policy's fields. Raises InputError."""
    table = read_object(path)
    schedule, version = table.pop("schedule", None), table.pop("schema", SCHEMA)
    if version != SCHEMA:
        raise InputError(f"policy file {path}: schema {version!r} is not known; this version reads {SCHEMA}")
    return schedule, table
