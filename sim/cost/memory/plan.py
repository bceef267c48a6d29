"""What every memory holds under a policy, part by part, and which of them is too small for it."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from types import MappingProxyType

from sim.cost.memory.activations import host_activation_bytes
from sim.cost.memory.buffers import BufferBytes
from sim.cost.memory.expanded import working_bytes
from sim.cost.memory.kv_cache import cache_bytes_of_host_layers, kv_bytes, kv_bytes_on_device
from sim.problem import (
    Batch,
    Hardware,
    MicroBatch,
    Model,
    Placement,
    Policy,
    are_unpacked,
    unpacked_at_once,
    unpacked_experts,
    unpacks_experts,
)
from sim.schedule import ExpertPlace, Holds, MemoryPart, PipelineShape, Schedule, Tier, layout_of

UNIFIED = "unified"
"""What device and host are together, where they are one memory."""
UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "bytes"))
FEW = 0.1
"""Less than so much of a unit is told in a smaller one."""

DISK_IS_NO_HELP = "; the disk is not used: no schedule reads weights from one"


@dataclass(frozen=True, slots=True)
class Shortage:
    """A memory that a policy does not fit."""

    tier: str
    needed_bytes: int
    usable_bytes: int
    """What of it a plan may use."""
    beside: str = ""
    """What the machine has besides that is no help, if anything."""

    @property
    def short_bytes(self) -> int:
        return self.needed_bytes - self.usable_bytes

    def __str__(self) -> str:
        size, unit = next(one for one in UNITS if (self.usable_bytes or self.needed_bytes) >= FEW * one[0])
        needed, usable = (f"{count / size:.2f} {unit}" for count in (self.needed_bytes, self.usable_bytes))
        return f"{self.tier} memory is {self.short_bytes:,} bytes short (needs {needed} of {usable}){self.beside}"


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes per tier by what they hold; `device` is one device's share."""

    device: Mapping[str, int]
    host: Mapping[str, int]
    pinned: Mapping[str, int]

    def tiers(self) -> dict[str, Mapping[str, int]]:
        """The plans of all tiers."""
        return {tier: getattr(self, tier) for tier in Tier}

    def peak_bytes(self) -> dict[str, int]:
        """Each tier's total; pinned memory is counted in the host's too."""
        return {tier: sum(parts.values()) for tier, parts in self.tiers().items()}

    def shortages(self, hardware: Hardware) -> list[Shortage]:
        """Every memory of the machine that the plan does not fit, the largest lack first."""
        peaks, rooms = self.peak_bytes(), usable_bytes(hardware)
        if hardware.unified:
            peaks, rooms = {UNIFIED: peaks[Tier.DEVICE] + peaks[Tier.HOST]}, {UNIFIED: rooms[Tier.HOST]}
        beside = dict.fromkeys((Tier.HOST, UNIFIED), DISK_IS_NO_HELP) if hardware.disk is not None else {}
        short = [Shortage(t, peaks[t], limit, beside.get(t, "")) for t, limit in rooms.items() if peaks[t] > limit]
        return sorted(short, key=lambda shortage: -shortage.short_bytes)


def usable_bytes(hardware: Hardware) -> dict[str, int]:
    """What of each memory a plan may use: what it holds, less what others keep; `device` is one device's.

    Where device and host are one memory, both may use all of it, and no more together, as `shortages` counts.
    """
    kept = reserve_bytes(hardware)
    if hardware.unified:
        kept = dict.fromkeys(kept, kept[Tier.DEVICE] + kept[Tier.HOST])
    of_host = max(0, int(hardware.host_memory.capacity_bytes) - kept[Tier.HOST])
    return {
        Tier.DEVICE: max(0, int(hardware.device_memory.capacity_bytes) - kept[Tier.DEVICE]),
        Tier.HOST: of_host,
        Tier.PINNED: min(int(hardware.pinned_bytes), of_host),
    }


def reserve_bytes(hardware: Hardware) -> dict[str, int]:
    """What of each memory others keep; page-locked memory is of the host's, which keeps it."""
    kept = hardware.reserve
    device, host = (0, 0) if kept is None else (ceil(kept.device_kept_bytes), ceil(kept.host_kept_bytes))
    return {Tier.DEVICE: device, Tier.HOST: host, Tier.PINNED: 0}


def tensor_ranks(schedule: Schedule, num_devices: int) -> int:
    """Devices that share each tensor; one where each does its part of the batch, or has layers of its own."""
    return 1 if schedule.system.splits_batch or schedule.system.divides_layers else num_devices


def plan_memory(
    schedule: Schedule,
    shape: PipelineShape,
    policy: Policy,
    model: Model,
    batch: Batch,
    num_devices: int = 1,
    loaded: Mapping[Holds, MicroBatch] = MappingProxyType({}),
) -> MemoryPlan:
    """Plan the memory of a whole generation: weights, KV cache at its longest, activations, buffers, staging.

    In a stream, `loaded` are micro-batches whose KV cache comes to the device, with the most that may come, by what
    there holds it.
    """
    ranks = tensor_ranks(schedule, num_devices)
    cache = kv_bytes(model, policy, batch, batch.gen_len - 1, ranks)
    placement, place = Placement.of(policy, schedule, model), ExpertPlace
    cache_on_device = kv_bytes_on_device(model, policy, batch, batch.gen_len - 1, shape, ranks)
    cache_of_host, elsewhere = cache_bytes_of_host_layers(placement, policy, batch)
    cache_on_device -= elsewhere
    others, others_of_host = model.non_expert_bytes(placement.widths), placement.non_expert_bytes_on_host()
    undivided = (ranks - 1) * model.over_layers(lambda layer: layer.undivided_bytes(placement.widths))
    buffers = BufferBytes(schedule, shape, policy, model, batch, loaded, ranks)
    shared = {
        MemoryPart.EMBEDDING_AND_HEAD: model.ends_bytes(placement.widths),
        MemoryPart.NON_EXPERTS: 0 if shape.streams_non_experts else others - others_of_host + undivided,
        MemoryPart.RESIDENT_EXPERTS: placement.experts_bytes(place.DEVICE),
        MemoryPart.UNPACKED_EXPERTS: unpacked_bytes(policy, placement, len(batch.micro_batches)),
        MemoryPart.KV_CACHE: cache_on_device,
    }
    device = Counter[str]({part: -(-size // num_devices) for part, size in shared.items()})
    device[MemoryPart.ACTIVATIONS] = working_bytes(shape, placement, batch, ranks, loaded)
    fetches = any(split.fetched for _, split in placement.distinct)
    kept = place.DEVICE if schedule.system.caches_experts and fetches else place(0)  # what a cache drops is not lost
    host = Counter[str](
        {
            MemoryPart.STREAMED_WEIGHTS: placement.experts_bytes(place.STREAMED | place.FETCHED | kept)
            + (others - others_of_host + undivided if shape.streams_non_experts else 0),
            MemoryPart.NON_EXPERTS: others_of_host,
            MemoryPart.ACTIVATIONS: batch.copies * host_activation_bytes(placement, batch),
            MemoryPart.HOST_EXPERTS: placement.experts_bytes(place.HOST),
            MemoryPart.KV_CACHE: cache - cache_on_device,
        }
    )
    pinned = _locked_weights(policy, placement)
    if layout_of(schedule, shape).buffers["kv"].tier is Tier.PINNED:
        pinned[MemoryPart.KV_CACHE] = cache - cache_on_device - cache_of_host
    for tier, part, whole, size in buffers.bytes():
        if tier is Tier.DEVICE:
            device[part] += size if whole else -(-size // ranks)
        else:
            host[part] += batch.copies * size * (ranks if whole else 1)
        if tier is Tier.PINNED:
            pinned[part] += batch.copies * size * (ranks if whole else 1)
    return MemoryPlan(*(dict(+parts) for parts in (device, host, pinned)))


def _locked_weights(policy: Policy, placement: Placement) -> Counter[str]:
    """Page-locked weights: of each layer the first ones, those of the host's experts last."""
    found = Counter[str]()
    for kind, count in enumerate(placement.counts):
        layer, split = placement.distinct[kind]
        locked = policy.locked_bytes(placement.moved_bytes(kind))
        stays = placement.prefill_on_host or split.layer_on_host
        others = 0 if stays else split.on_host * layer.expert_bytes(placement.widths.experts)
        streamed = min(locked, placement.moved_bytes(kind) - others)
        found[MemoryPart.STREAMED_WEIGHTS] += count * streamed
        found[MemoryPart.HOST_EXPERTS] += count * (locked - streamed)
    return found


def unpacked_bytes(policy: Policy, placement: Placement, num_micro_batches: int) -> int:
    """Experts as wide as the model computes, where a policy stores them otherwise, and those that are being unpacked.

    Of the layer that needs most.
    """
    model, needed = placement.model, 0
    if not unpacks_experts(policy, model):
        return 0
    for layer, split in placement.distinct:
        count, one = layer.num_experts, layer.expert_bytes(model.activation_bits)
        if not count or split.layer_on_host or not are_unpacked(split, prefill_on_host=placement.prefill_on_host):
            continue
        unpacked = unpacked_experts(count, num_micro_batches, one) * one
        packed = unpacked_at_once(count, one) * layer.expert_bytes(placement.widths.experts)
        needed = max(needed, unpacked + packed)
    return needed
