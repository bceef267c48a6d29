"""The slots of a schedule, filled with arrays: what a task reads must be what the schedule says is there."""

from typing import Any, NamedTuple

import jax

from engine.device import XlaDevice
from engine.running.xla.host_cache import HostCache
from sim.schedule import Access, SlotLayout

Content = tuple[jax.Array, ...] | HostCache
"""What one slot holds: arrays in the memory of its buffer, or a cache that NumPy keeps."""


class _Held(NamedTuple):
    what: tuple[Any, ...]
    content: Content


class Slots:
    """One content a slot and no more: what comes into a slot takes the place of what was there."""

    def __init__(self, layout: SlotLayout, device: XlaDevice) -> None:
        self._layout, self._device = layout, device
        self._held: dict[tuple[str, int], _Held] = {}

    def read(self, access: Access) -> Content:
        """What is in a slot. Raises RuntimeError for anything else than the schedule says."""
        return self.read_all(access)[0]

    def read_all(self, access: Access) -> list[Content]:
        """The same of all slots of the access."""
        found = [self._held.get((access.buffer, at)) for at in range(access.first, access.first + access.length)]
        for held in found:
            if held is None or held.what != access.content:
                there = "nothing" if held is None else f"{held.what}"
                raise RuntimeError(f"{access.buffer}: {access.content} was to be read where {there} is")
        return [held.content for held in found if held is not None]

    def empty(self, access: Access) -> None:
        """Lets go of what is in the slots, whether or not it is still being read."""
        for at in range(access.first, access.first + access.length):
            held = self._held.pop((access.buffer, at), None)
            if held is None:
                continue
            self._ledger(access.buffer, held.content).refund(access.buffer, _num_bytes(held.content))
            for array in held.content if isinstance(held.content, tuple) else ():
                if not array.is_deleted():  # given to a program, for what it makes
                    array.delete()

    def take(self, access: Access) -> None:
        """Lets go of what is in a slot for somebody who keeps the arrays."""
        held = self._held.pop((access.buffer, access.first))
        self._ledger(access.buffer, held.content).refund(access.buffer, _num_bytes(held.content))

    def write(self, access: Access, content: Content, page: int = 0) -> None:
        """Puts content into a slot that was emptied; `page` counts the slots of the access."""
        self._ledger(access.buffer, content).charge(access.buffer, _num_bytes(content))
        self._held[access.buffer, access.first + page] = _Held(access.content, content)

    def rename(self, access: Access) -> None:
        """What is in a slot has become what the access writes: a cache that grows in place."""
        slot = access.buffer, access.first
        self._held[slot] = self._held[slot]._replace(what=access.content)

    def close(self) -> None:
        """Empties all of them."""
        for buffer, at in list(self._held):
            self.empty(Access(buffer, at, ()))

    def _ledger(self, buffer: str, content: Content) -> Any:
        if isinstance(content, HostCache):
            return self._device.host
        return self._device.ledger_of(self._layout.buffers[buffer].tier)


def _num_bytes(content: Content) -> int:
    return content.num_bytes if isinstance(content, HostCache) else sum(array.nbytes for array in content)
