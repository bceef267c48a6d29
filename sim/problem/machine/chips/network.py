"""What carries an all-reduce between the devices of one host, and what the links of a mesh or torus give to it.

Each of r devices has to send 2 (r - 1) / r of the bytes that are summed, so that the links of the one that has fewest
bound the sum: in a mesh a corner. On the meshes of one host, 2x2 and 2x4, a ring through all of them in both directions
reaches that bound; on larger ones, sums axis by axis, each axis a part of the bytes, come near it.
"""

import math
import re
from dataclasses import dataclass

from sim.problem.machine.quantity import Quantity
from sim.problem.machine.tables import Part
from traces.errors import InputError, shown


@dataclass(frozen=True, slots=True)
class Network(Part):
    """`bandwidth` is what a device gives to an all-reduce. Of a mesh it follows from what one link moves `one_way`.

    `mesh` says how many devices there are along each axis, as `2x4`; in one that `wraps` the ends of an axis are wired
    to each other.
    """

    bandwidth_bytes_per_s: Quantity
    latency_s: Quantity
    one_way_bytes_per_s: Quantity | None = None
    mesh: str | None = None
    wraps: bool = False

    def __post_init__(self) -> None:
        Part.__post_init__(self)
        if self.mesh is not None:
            axes_of(self.mesh)

    def check_devices(self, count: int) -> None:
        """Raise InputError where the mesh has another number of devices than the machine."""
        if self.mesh is not None and math.prod(axes_of(self.mesh)) != count:
            raise InputError(f"network.mesh: {self.mesh} is not {count} devices; mend it or num_devices")


def axes_of(mesh: str) -> tuple[int, ...]:
    """Devices along each axis. Raises InputError for a text that is none."""
    if re.fullmatch(r"[1-9]\d*(x[1-9]\d*){0,2}", mesh) is None:
        raise InputError(f"mesh: {shown(mesh)} is no mesh; give it as 2x4, or 2x2x1")
    return tuple(map(int, mesh.split("x")))


def links_of_a_corner(mesh: str, *, wraps: bool) -> int:
    """Links that the device with fewest has: what bounds an all-reduce, and what rings reach."""
    return sum(2 if wraps and length > 2 else 1 for length in axes_of(mesh) if length > 1)
