"""The values that each field of a policy takes when the best one is looked for."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sim.problem import Policy, WeightBits
from sim.schedule import Place, Schedule

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
"""Values of many policies at once."""


def sizes_up_to(most: int, per_doubling: int) -> tuple[int, ...]:
    """Whole numbers from 1 to `most`, about so many to each doubling, multiples of 4 from 32 on."""
    steps = (2 ** (at / per_doubling) for at in range(per_doubling * most.bit_length()))
    found = {round(step) if step < 32 else 4 * round(step / 4) for step in steps}
    return tuple(sorted(one for one in found if one <= most))


@dataclass(frozen=True, slots=True)
class PolicyGrid:
    """The values that each axis takes. `pages` are multiples of the number of micro-batches."""

    micro_batch_sizes: tuple[int, ...] = sizes_up_to(512, 4)
    num_micro_batches: tuple[int, ...] = sizes_up_to(192, 4)
    kv_shares: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    pages: tuple[float, ...] = (0.0, 0.25, 0.5, 1.0, 2.0)
    expert_values: int = 17
    """At most so many numbers of resident experts, evenly spread; the most that fit is always among them."""
    attention: Place | None = None
    """Where attention runs, if that is given."""
    weight_bits: WeightBits | None = None
    kv_bits: float | None = None
    num_requests: int | None = None
    """Batches of exactly so many requests; μ follows from the number of micro-batches."""
    most_requests: int | None = None
    stream_non_experts: bool = False
    """Whether what is no expert streams too."""
    groups: tuple[int, ...] = (1, 2, 4, 0)
    """In how many groups of micro-batches experts are computed; 0: each micro-batch alone."""
    levels: tuple[int, int, int] = (0, 32, 32)
    """Numbers of resident experts, as (first, last, parts of all): the most that fit of these, and `resident_parts`."""
    resident_parts: tuple[float, ...] = (0.0, 0.5, 1.0)
    host_parts: tuple[float, ...] = (0.0, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0)
    """Shares of the others that are on the host."""
    fetched_parts: tuple[float, ...] = (0.0, 0.5, 1.0)
    """Shares of what is left that is fetched; what is left then streams."""
    prefill_experts: Place | None = None
    """Where prefill computes the experts of the host, if that is given."""

    def thinned(self, most: int) -> "PolicyGrid":
        """At most so many sizes and numbers of micro-batches, and the KV cache on one side or the other."""
        sizes, counts = (_some(values, most) for values in (self.micro_batch_sizes, self.num_micro_batches))
        shares = tuple(sorted({min(self.kv_shares), max(self.kv_shares)}))
        return replace(self, micro_batch_sizes=sizes, num_micro_batches=counts, kv_shares=shares)

    def resident_levels(self, total: int) -> list[int]:
        """Whole numbers of resident experts of so many: where a layer streams whole, all of them or none."""
        first, last, parts = (0, 1, 1) if self.stream_non_experts else self.levels
        return sorted({round(total * at / parts) for at in range(first, last + 1)} | {0})

    def with_sizes(self, micro_batch_size: int | None, num_micro_batches: int | None) -> "PolicyGrid":
        """The same grid with sizes that are given fixed."""
        sizes = self.micro_batch_sizes if micro_batch_size is None else (micro_batch_size,)
        counts = self.num_micro_batches if num_micro_batches is None else (num_micro_batches,)
        return replace(self, micro_batch_sizes=sizes, num_micro_batches=counts)

    def around(self, policy: Policy, reach: float = 0.2, values: int = 16) -> "PolicyGrid":
        """A fine grid near a policy: up to so many sizes and numbers of micro-batches within `reach`, and KV shares."""
        size, count = policy.micro_batch_size, policy.num_micro_batches
        sizes = _near(size, reach, values) if len(self.micro_batch_sizes) > 1 else self.micro_batch_sizes
        counts = _near(count, reach, values) if len(self.num_micro_batches) > 1 else self.num_micro_batches
        steps = (policy.kv_on_device + step / 16 for step in range(-3, 4))
        shares = tuple(step for step in steps if 0 <= step <= 1)
        fine = replace(self, micro_batch_sizes=sizes, num_micro_batches=counts, kv_shares=shares)
        return replace(fine, attention=policy.attention)

    def with_places_near(self, policy: Policy, step: float, parts: tuple[float, ...]) -> "PolicyGrid":
        """The same grid with places of experts near a policy's, a few steps to each side; of residents, these parts."""
        others = 1.0 - policy.experts_on_device
        host = policy.experts_on_host / others if others else 0.0
        behind = others - policy.experts_on_host
        fetched = policy.experts_fetched / behind if behind > 0 else 0.0
        fine = round(1 / step) * 4
        level = round(policy.experts_on_device * fine)
        return replace(
            self,
            groups=(policy.groups or 0,),
            levels=(max(0, level - 6), min(fine, level + 6), fine),
            resident_parts=parts,
            host_parts=_steps(host, step),
            fetched_parts=_steps(fetched, 2 * step, 2),
            prefill_experts=policy.prefill_experts,
        )

    def policies(self, schedule: Schedule) -> Iterator[list[Policy]]:
        """Those of one placement and micro-batch size in a list, growing: experts on the host, pageable, unpaged."""
        weights, kv = self.weight_bits, self.kv_bits
        for place, share in placements(schedule, self):
            for sizes in self.batches(schedule.system.one_batch):
                first = Policy(1, 1, place, kv_on_device=share, weight_bits=weights, kv_bits=kv)
                first = replace(first, stream_non_experts=self.stream_non_experts)
                yield [replace(first, batch_size=batch, micro_batch_size=size) for batch, size in sizes]

    def batches(self, one_batch: bool) -> Iterator[list[tuple[int, int]]]:
        """(batch size, micro-batch size), batches of one micro-batch size in a list that grows.

        With `one_batch` all requests are one micro-batch, those of sizes that are given too.
        """
        if self.num_requests is not None:
            counts = (1,) if one_batch else tuple(one for one in self.num_micro_batches if one <= self.num_requests)
            sizes = sorted({-(-self.num_requests // count) for count in counts})
            yield from ([(self.num_requests, size)] for size in sizes)
            return
        counts = (1,) if one_batch and len(self.num_micro_batches) > 1 else tuple(sorted(self.num_micro_batches))
        most = self.most_requests or max(counts) * max(self.micro_batch_sizes)
        for size in self.micro_batch_sizes:
            yield [(size * count, size * count if one_batch else size) for count in counts if size * count <= most]


def _some(values: tuple[int, ...], most: int) -> tuple[int, ...]:
    last = len(values) - 1
    return values if last < most else tuple(values[round(last * at / (most - 1))] for at in range(most))


def _steps(middle: float, step: float, reach: int = 4) -> tuple[float, ...]:
    """Shares up to so many steps away."""
    return tuple(sorted({min(1.0, max(0.0, middle + step * at)) for at in range(-reach, reach + 1)}))


def _near(size: int, reach: float, values: int) -> tuple[int, ...]:
    """All whole numbers within a share of a size, a little more above than below, or so many of them."""
    low, high = max(1, int(size * (1 - 0.9 * reach))), int(size * (1 + 1.1 * reach)) + 1
    return tuple(sorted({round(low + (high - low) * at / (values - 1)) for at in range(values)} | {size}))


def placements(schedule: Schedule, grid: PolicyGrid) -> list[tuple[Place, float]]:
    """Where attention runs, and the KV cache's share on the device, as the schedule can work with them."""
    found: list[tuple[Place, float]] = []
    for place in schedule.system.attention if grid.attention is None else (grid.attention,):
        if schedule.system.kv_on_device or place is Place.CPU:
            found.append((place, float(schedule.system.kv_on_device)))
        else:
            found.extend((place, share) for share in grid.kv_shares)
    return found


def locks_weights(schedule: Schedule) -> bool:
    """Whether streamed weights may be page-locked: where the system page-locks memory of its own accord."""
    return schedule.system.pins_weights or schedule.system.pins_kv
