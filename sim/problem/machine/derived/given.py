"""What is known of a machine when a number is derived from others, and the rule that derives it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sim.problem.machine.quantity import Dimension, Quantity

Table = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Rule:
    """A number at a dotted path, how it is known, and its value in a machine; None where too little is known."""

    path: str
    unit: str
    source: str
    value: Callable[["Given"], float | None]


class Given:
    """The numbers of a machine's table by their dotted names, with what was derived before. Raises InputError."""

    def __init__(self, table: Table) -> None:
        self.table = table

    def number(self, path: str, dimension: Dimension) -> Quantity | None:
        """What is there in SI units; None if there is nothing that can be read."""
        found: Any = self.table
        for key in path.split("."):
            found = found.get(key) if isinstance(found, Mapping) else None
        return None if found is None else Quantity.parse(found, path, dimension)

    def size(self, path: str) -> float | None:
        return self.number(path, Dimension.SIZE)

    def rate(self, path: str) -> float | None:
        return self.number(path, Dimension.RATE)

    @property
    def device_limit_w(self) -> float | None:
        return self.number("power.device.limit", Dimension.POWER)

    @property
    def cores(self) -> int | None:
        host = self.table.get("host")
        count = host.get("cores") if isinstance(host, Mapping) else None
        return count if isinstance(count, int) and count > 0 else None

    @property
    def is_locked_only(self) -> bool:
        link = self.table.get("link")
        return isinstance(link, Mapping) and link.get("locked_only") is True

    @property
    def is_unified(self) -> bool:
        return self.table.get("unified") is True
