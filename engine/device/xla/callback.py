"""What a callback costs a device: whether others of its programs run while one of them asks the host.

It decides where attention on the host belongs. Inside a program it would hold up whatever XLA has queued behind it; on
a lane of its own it holds up what the schedule says, and nothing else.
"""

import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engine.device.xla.device import XlaDevice

ON_HOST_S = 0.2
"""For how long the host is asked: long beside what it takes to give the device work."""


@dataclass(frozen=True, slots=True)
class Callback:
    """Seconds from when both were asked for until each was there: a program with a callback, and one without after it.

    `on_host_s` is what the host took for the callback.
    """

    on_host_s: float
    asking_s: float
    other_s: float

    @property
    def holds_up(self) -> bool:
        """Whether the other program waited for the callback."""
        return self.other_s > self.on_host_s / 2


def measure_callback(device: XlaDevice) -> Callback:
    """Runs both programs, compiled before, one behind the other on the device's one queue."""
    given = device.put(np.ones((64, 64), np.float32))

    def on_host(value: Any) -> Any:
        time.sleep(ON_HOST_S)
        return np.asarray(value)

    def asking(value: jax.Array) -> jax.Array:
        told: jax.Array = jax.pure_callback(on_host, jax.ShapeDtypeStruct(value.shape, value.dtype), value + 1)
        return told + 1

    def other(value: jax.Array) -> jax.Array:
        return jnp.tanh(value @ value)

    first, second = (jax.jit(one).lower(given).compile() for one in (asking, other))
    for program in (first, second):
        program(given).block_until_ready()
    start = time.perf_counter()
    asked, made = first(given), second(given)
    made.block_until_ready()
    other_s = time.perf_counter() - start
    asked.block_until_ready()
    return Callback(ON_HOST_S, time.perf_counter() - start, other_s)
