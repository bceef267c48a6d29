"""The values that each field of a policy takes when the best one is looked for."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sim.problem import Policy
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
    weight_bits: float | None = None
    kv_bits: float | None = None
    num_requests: int | None = None
    """Batches of exactly so many requests; μ follows from the number of micro-batches."""
    most_requests: int | None = None

    def with_sizes(self, micro_batch_size: int | None, num_micro_batches: int | None) -> "PolicyGrid":
        """The same grid with sizes that are given fixed."""
        sizes = self.micro_batch_sizes if micro_batch_size is None else (micro_batch_size,)
        counts = self.num_micro_batches if num_micro_batches is None else (num_micro_batches,)
        return replace(self, micro_batch_sizes=sizes, num_micro_batches=counts)

    def around(self, policy: Policy) -> "PolicyGrid":
        """A fine grid of all sizes and KV shares near a policy."""
        sizes = _near(policy.micro_batch_size) if len(self.micro_batch_sizes) > 1 else self.micro_batch_sizes
        counts = _near(policy.num_micro_batches) if len(self.num_micro_batches) > 1 else self.num_micro_batches
        steps = (policy.kv_on_device + step / 16 for step in range(-3, 4))
        shares = tuple(step for step in steps if 0 <= step <= 1)
        fine = replace(self, micro_batch_sizes=sizes, num_micro_batches=counts, kv_shares=shares)
        return replace(fine, attention=policy.attention)

    def policies(self, schedule: Schedule) -> Iterator[list[Policy]]:
        """Those of one placement and micro-batch size in a list, growing: experts on the host, pageable, unpaged."""
        weights, kv = self.weight_bits, self.kv_bits
        for place, share in placements(schedule, self):
            for sizes in self.batches(schedule.system.one_batch):
                yield [Policy(*both, place, kv_on_device=share, weight_bits=weights, kv_bits=kv) for both in sizes]

    def batches(self, one_batch: bool) -> Iterator[list[tuple[int, int]]]:
        """(batch size, micro-batch size), batches of one micro-batch size in a list that grows."""
        if self.num_requests is not None:
            counts = (1,) if one_batch else tuple(one for one in self.num_micro_batches if one <= self.num_requests)
            sizes = sorted({-(-self.num_requests // count) for count in counts})
            yield from ([(self.num_requests, size)] for size in sizes)
            return
        counts = (1,) if one_batch and len(self.num_micro_batches) > 1 else tuple(sorted(self.num_micro_batches))
        most = self.most_requests or max(counts) * max(self.micro_batch_sizes)
        for size in self.micro_batch_sizes:
            yield [(size * count, size) for count in counts if size * count <= most]


def _near(size: int) -> tuple[int, ...]:
    """All whole numbers within a fifth of a size, or sixteen of them."""
    low, high = max(1, int(size * 0.82)), int(size * 1.22) + 1
    return tuple(sorted({round(low + (high - low) * at / 15) for at in range(16)} | {size}))


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
