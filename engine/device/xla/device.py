"""A device of JAX: which memories it has, what lies in them, and the copies between them."""

from typing import Any

import jax
import numpy as np

from engine.device.ledger import DeviceOutOfMemory, Ledger
from engine.device.threads import HostCores
from engine.device.xla.lanes import XlaLane
from engine.device.xla.programs import Programs
from sim.schedule import LaneKind, Tier
from traces.errors import InputError

DEVICE_KIND, PINNED_KIND = "device", "pinned_host"
"""What XLA calls the memories that are used: the device's own, and host memory that it can copy from directly."""


class XlaDevice:
    """The first device that JAX finds; its memory has accounts, and a limit where `memory_bytes` gives one.

    Raises InputError for one without a memory of the host that it copies from.
    """

    def __init__(self, memory_bytes: int | None = None) -> None:
        self.jax_device = jax.devices()[0]
        self.kinds = tuple(memory.kind for memory in self.jax_device.addressable_memories())
        if missing := [kind for kind in (DEVICE_KIND, PINNED_KIND) if kind not in self.kinds]:
            raise InputError(
                f"jax: {self.jax_device.device_kind} has no memory {' and '.join(missing)}, only "
                f"{', '.join(self.kinds)}: take a CPU, GPU or TPU backend of jax 0.10 or later"
            )
        self.origin = f"XLA ({self.jax_device.device_kind})"
        self.memory = Ledger("device memory", memory_bytes, DeviceOutOfMemory)
        self.pinned = Ledger(f"{PINNED_KIND} memory", None)
        self.host = Ledger("host memory", None)
        self.programs = Programs()
        self._cores = HostCores.that_play(None, None)

    @property
    def facts(self) -> dict[str, Any]:
        """What a trace keeps of the device."""
        return {
            "name": "xla",
            "platform": self.jax_device.platform,
            "kind": self.jax_device.device_kind,
            "memory_kinds": list(self.kinds),
            "memory_bytes": self.memory.capacity_bytes,
        }

    @property
    def ledgers(self) -> dict[str, Ledger]:
        """The accounts of every memory."""
        return {"device": self.memory, "pinned": self.pinned, "host": self.host}

    def start_run(self) -> None:
        """From now on counts what is held and which programs are used."""
        self.programs.start_count()
        for ledger in self.ledgers.values():
            ledger.reset_peak()
            ledger.start_history()

    def take_histories(self) -> dict[str, list[tuple[int, int]]]:
        """What each memory has held since then, as `Ledger.take_history` says."""
        return {name: ledger.take_history() for name, ledger in self.ledgers.items()}

    @property
    def allocator_peak_bytes(self) -> int | None:
        """The most that XLA's own allocator has held since the process began; None where it does not say."""
        stats = self.jax_device.memory_stats() or {}
        return stats.get("peak_bytes_in_use")

    def ledger_of(self, tier: Tier | None) -> Ledger:
        """The accounts of arrays of a tier. What a schedule gives no tier is the device's."""
        return self.memory if tier in (None, Tier.DEVICE) else self.pinned

    def put(self, value: jax.Array | np.ndarray[Any, Any], tier: Tier | None = Tier.DEVICE) -> jax.Array:
        """Asks for a copy in the memory of a tier: never the same bytes, also where both are the host's."""
        kind = DEVICE_KIND if tier in (None, Tier.DEVICE) else PINNED_KIND
        place = jax.sharding.SingleDeviceSharding(self.jax_device, memory_kind=kind)
        if isinstance(value, np.ndarray) and self.jax_device.platform == "cpu":
            value = value.copy()  # well aligned memory of NumPy's is taken over as it is, whatever `may_alias` says
        return jax.device_put(value, place, may_alias=False)

    def open_lane(self, kind: LaneKind) -> XlaLane:
        """A new lane of this device."""
        return XlaLane(kind, self._cores)
