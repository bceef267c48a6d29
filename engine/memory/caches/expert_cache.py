"""The experts of a layer that are on the device because they were used last."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch


class CacheTurn(NamedTuple):
    """What a cache has for some tokens that use experts of its layer, and what it takes in once they are computed."""

    held: Mapping[int, int]
    """The slots of the experts that it holds."""
    missing: Sequence[int]
    """Experts that are used and must come."""
    moves: Sequence[tuple[int, int]]
    """Which of the missing ones, by their place among them, go to which slot afterwards."""
    slots: int
    """How many the cache has."""


class LastUsedExperts:
    """Slots for some experts of a layer. What is used and in none takes the slot of the one used longest ago.

    A turn is planned when experts are asked for; slots change when the device has computed it, turn by turn.
    """

    def __init__(self, slots: Mapping[str, torch.Tensor], numbers: Sequence[int]) -> None:
        """`slots` hold the experts of these numbers, by the name of a parameter."""
        self._slots = slots
        self._first = tuple(numbers)
        self._held = OrderedDict((number, slot) for slot, number in enumerate(numbers))  # longest ago first

    def plan(self, used: Iterable[int]) -> CacheTurn:
        """For tokens that use these experts."""
        used = list(used)
        held = dict(self._held)
        missing = [number for number in used if number not in held]
        for number in used:
            if number in self._held:
                self._held.move_to_end(number)
        entering = missing[len(missing) - min(len(missing), len(self._first)) :]
        moves = []
        for number in entering:
            _, slot = self._held.popitem(last=False)
            self._held[number] = slot
            moves.append((missing.index(number), slot))
        return CacheTurn(held, missing, moves, len(self._first))

    def take_in(self, turn: CacheTurn, came: Mapping[str, torch.Tensor]) -> None:
        """On the device, in the order of plans: experts that came for a turn go to their slots."""
        for place, slot in turn.moves:
            for name, tensor in came.items():
                self._slots[name][slot].copy_(tensor[place])

    def restore(self, first: Mapping[str, torch.Tensor]) -> None:
        """Puts the experts of the start back, from the host; nothing may be using the slots."""
        for slot, number in enumerate(self._first):
            if self._held.get(number) != slot:
                for name, tensor in first.items():
                    self._slots[name][slot].copy_(tensor[slot])
        self._held = OrderedDict((number, slot) for slot, number in enumerate(self._first))
