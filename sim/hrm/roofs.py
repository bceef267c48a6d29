"""The roofs of a machine with several levels of memory, and what work under them can attain (paper section 3)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from traces.errors import InputError

Amount = float | NDArray[np.float64]
"""One number, or one for each policy of a grid."""


@dataclass(frozen=True, slots=True)
class Level:
    """A processor and its memory. A level that only stores, such as a disk, has a peak of 0."""

    name: str
    peak_flops_per_s: float
    bandwidth_bytes_per_s: float

    def __post_init__(self) -> None:
        if self.peak_flops_per_s < 0 or self.bandwidth_bytes_per_s <= 0:
            raise InputError(f"level {self.name}: the peak must be 0 or more and the bandwidth above 0, got {self}")

    def attainable(self, intensity: Amount) -> Amount:
        """FLOP/s of work at that intensity (FLOP per byte of this level) with all its data here."""
        return np.minimum(self.peak_flops_per_s, self.bandwidth_bytes_per_s * intensity)


@dataclass(frozen=True, slots=True)
class Attainable:
    """FLOP/s that work reaches, and the name of the roof that binds, of the same shape."""

    flops_per_s: NDArray[np.float64]
    roof: NDArray[np.str_]


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """Levels from the fastest processor outwards (GPU, CPU, disk, ...), each linked to the one before it.

    `links_bytes_per_s[n]` is the rate from `levels[n + 1]` to `levels[n]`.
    """

    levels: tuple[Level, ...]
    links_bytes_per_s: tuple[float, ...]

    def __post_init__(self) -> None:
        names = [level.name for level in self.levels]
        if not names or len(set(names)) < len(names):
            raise InputError(f"a hierarchy needs levels with different names, got {names}")
        if len(self.links_bytes_per_s) != len(names) - 1 or min(self.links_bytes_per_s, default=1.0) <= 0:
            raise InputError(
                f"{len(names)} levels need {len(names) - 1} links with rates above 0, got {self.links_bytes_per_s}"
            )

    def __getitem__(self, name: str) -> Level:
        return self.levels[self._index(name)]

    def _index(self, name: str) -> int:
        names = [level.name for level in self.levels]
        if name not in names:
            raise InputError(f"no level {name!r} in this hierarchy; there are {', '.join(names)}")
        return names.index(name)

    def link_bytes_per_s(self, source: str, at: str) -> float:
        """Return the rate from `source` to a faster level `at`: that of the slowest link on the way."""
        near, far = self._index(at), self._index(source)
        if far <= near:
            raise InputError(f"data moves inwards: {source!r} is not outside {at!r}")
        return min(self.links_bytes_per_s[near:far])

    def roofs(self, at: str, intensities: Mapping[str, Amount]) -> dict[str, Amount]:
        """Return every roof over work done on level `at`, by name, in FLOP/s.

        `intensities` gives, for each level whose data the work touches, FLOP per byte of that level; the data of other
        levels than `at` crosses the links.
        """
        level = self[at]
        roofs: dict[str, Amount] = {f"{at} compute": level.peak_flops_per_s}
        for source, intensity in intensities.items():
            if source == at:
                roofs[f"{at} memory"] = level.bandwidth_bytes_per_s * intensity
            else:
                roofs[f"{source}→{at} link"] = self.link_bytes_per_s(source, at) * intensity
        return roofs

    def attainable(self, at: str, intensities: Mapping[str, Amount]) -> Attainable:
        """Return the lowest of the roofs over work on level `at`, and its name (equations 7 and 8)."""
        roofs = self.roofs(at, intensities)
        heights = np.stack(np.broadcast_arrays(*(np.asarray(height, dtype=float) for height in roofs.values())))
        return Attainable(heights.min(axis=0), np.array(list(roofs))[heights.argmin(axis=0)])

    def p1(self, near: str, far: str) -> float:
        """Turning point P1, as intensity on level `far`: below it, compute where the data is.

        It is where moving the data costs as much as the far processor's peak. 0 when the link is no slower than the far
        memory: then nothing is gained by staying.
        """
        link, level = self.link_bytes_per_s(far, near), self[far]
        return level.peak_flops_per_s / link if link < level.bandwidth_bytes_per_s else 0.0

    def p2(self, near: str, far: str, near_intensity: Amount) -> Amount:
        """Turning point P2, as intensity on level `far`: below it, the link binds work done on `near`."""
        return self[near].attainable(near_intensity) / self.link_bytes_per_s(far, near)

    def balance(self, near: str, far: str, near_intensity: Amount) -> Amount:
        """Balance point, as intensity on level `far`: link and near memory are equally busy."""
        return self[near].bandwidth_bytes_per_s * near_intensity / self.link_bytes_per_s(far, near)
