"""The device's own clock told in the host's: when an event happened, as `time.perf_counter_ns` would have said.

Events only know the time between two of them, in milliseconds with 32-bit precision. So now and then an event is
recorded on an idle stream between two looks at the host's clock: an anchor. Other events are placed by their distance
to the anchor before them, and the distance between anchors shows how much faster one clock runs than the other.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from engine.device.accelerator.runtime import Event

ANCHOR_EVERY_NS = 5_000_000_000
"""32 bits tell 5 s in steps of half a microsecond, which is the resolution of events anyway."""

TRIES = 8
"""Recordings for one anchor; the one with the narrowest window counts."""

WIDEST_WINDOW_NS = 100_000
"""A wider window says that the device was busy: no anchor then, the next event tries again."""

RATE_BASELINE_NS = 1_000_000_000
"""Anchors closer than this say nothing about the clocks' rates: their own error is a few microseconds."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """An event and the host's time of it, known to half of `window_ns`."""

    event: Event
    host_ns: int
    window_ns: int


class DeviceClock:
    """Places events of one device on the host's clock, from any thread; `record` records one on an idle stream."""

    def __init__(self, record: Callable[[], Event], now_ns: Callable[[], int] = time.perf_counter_ns) -> None:
        self._record = record
        self._now_ns = now_ns
        self._lock = threading.Lock()
        self._anchors = [self._measure()]
        self._segments_ns: list[float] = []  # device time from each anchor to the next

    def tick(self, at_once: bool = False) -> int:
        """The number of the newest anchor, which is renewed if it is old, or `at_once`."""
        if at_once or self._old():
            with self._lock:
                if (at_once or self._old()) and (anchor := self._measure()).window_ns <= WIDEST_WINDOW_NS:
                    self._segments_ns.append(self._anchors[-1].event.elapsed_time(anchor.event) * 1e6)
                    self._anchors.append(anchor)
        return len(self._anchors) - 1

    def host_ns(self, event: Event, anchor: int) -> int:
        """When an event that has happened did so; `anchor` is what `tick` said when it was recorded."""
        known = self._anchors[anchor]
        return known.host_ns + round(known.event.elapsed_time(event) * 1e6 * self._rate_after(anchor))

    def _old(self) -> bool:
        return self._now_ns() - self._anchors[-1].host_ns > ANCHOR_EVERY_NS

    def _rate_after(self, anchor: int) -> float:
        """Host nanoseconds per device nanosecond from this anchor to the next; behind the last, as it was overall."""
        with self._lock:
            if anchor < len(self._segments_ns):
                first, last, device_ns = anchor, anchor + 1, self._segments_ns[anchor]
            else:
                first, last, device_ns = 0, len(self._anchors) - 1, sum(self._segments_ns)
            host_ns = self._anchors[last].host_ns - self._anchors[first].host_ns
        return host_ns / device_ns if min(host_ns, device_ns) >= RATE_BASELINE_NS else 1.0

    def _measure(self) -> Anchor:
        tries = []
        for _ in range(TRIES):
            before_ns = self._now_ns()
            event = self._record()
            event.synchronize()
            window_ns = self._now_ns() - before_ns
            tries.append(Anchor(event, before_ns + window_ns // 2, window_ns))
        return min(tries, key=lambda anchor: anchor.window_ns)
