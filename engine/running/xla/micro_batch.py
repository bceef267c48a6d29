"""The requests of a micro-batch as XLA is given them: padded to the longest, on the device, and the tokens they get."""

from collections.abc import Sequence
from typing import Self

import jax
import numpy as np

from engine.device import XlaDevice
from engine.running.xla.host_cache import Numbers

NAME = "requests"


class XlaMicroBatch:
    """Prompts of one length, padded on the left. `tokens` has an array [R] for each step that has ended."""

    def __init__(self, ids: Numbers, padding: Numbers, capacity: int, device: XlaDevice) -> None:
        self.padding, self.capacity, self._device = padding, capacity, device
        self.num_requests, self.width = ids.shape
        self.ids, self.padding_there = device.put(ids), device.put(padding)
        self.tokens: list[jax.Array] = []
        device.memory.charge(NAME, self._input_bytes)

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int]], pad: int, new: int, device: XlaDevice) -> Self:
        """Prompts that will get `new` tokens each; the last one is not attended to."""
        width = max(map(len, prompts))
        padding = np.array([width - len(prompt) for prompt in prompts], np.int32)
        ids = np.array([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts], np.int32)
        return cls(ids, padding, width + new - 1, device)

    def at(self, step: int) -> int:
        """The place of a step's first token."""
        return self.width + step - 1 if step else 0

    def add(self, tokens: jax.Array) -> None:
        """Those of one step."""
        self._device.memory.charge(NAME, tokens.nbytes)
        self.tokens.append(tokens)

    def generated(self) -> list[list[int]]:
        """The tokens of each request."""
        rows: list[list[int]] = np.stack([np.asarray(tokens) for tokens in self.tokens], axis=1).tolist()
        return rows

    def close(self) -> None:
        """Gives back its memory on the device."""
        self._device.memory.refund(NAME, self._input_bytes + sum(tokens.nbytes for tokens in self.tokens))
        for array in (self.ids, self.padding_there, *self.tokens):
            array.delete()

    @property
    def _input_bytes(self) -> int:
        return int(self.ids.nbytes + self.padding_there.nbytes)
