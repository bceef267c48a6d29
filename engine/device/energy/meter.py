"""Counters read again and again beside the work: joules of any stretch of time, and watts over time."""

import bisect
import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Self

from engine.device.energy.counter import DEVICE, EnergyCounter, EnergyCounters, NoCounterError
from engine.device.energy.use import EnergyUse
from traces.trace import NONE, POWER, Counter

MOST_KEPT = 50_000
"""Rises of a counter that are kept, some 40 minutes of them; then every second one goes."""

RANK = 0
"""The device of a meter."""

EVERY_S = 0.05
"""How often counters are read: those of cards are renewed some ten times a second."""

MOST_W = 5000.0
"""More than any one counter's component draws. A counter that would have risen faster did not begin anew: it fell."""

SLACK_S = 1.0
"""So late may a counter tell what was used before."""

SETTLE_S = 0.3
"""So long is waited for counters to tell of the end of a phase."""


class EnergyMeter(contextlib.AbstractContextManager["EnergyMeter"]):
    """Reads counters in a thread from entering to leaving. Times are on the host clock, `time.perf_counter_ns`."""

    def __init__(
        self,
        counters: EnergyCounters,
        every_s: float = EVERY_S,
        now_ns: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self.names, self._missing = counters.names, dict(counters.missing)
        self._risings = [_Rising(one) for one in counters.counters]
        self._every_s, self._now_ns = every_s, now_ns
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="energy meter", daemon=True)

    def __enter__(self) -> Self:
        if self._risings:
            self.sample()
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def missing(self) -> dict[str, str]:
        """Of components without a counter, or whose counter was lost, why."""
        lost = {one.component: one.lost for one in self._risings if one.lost}
        return {**self._missing, **lost}

    @property
    def components(self) -> list[str]:
        """Those that are counted."""
        return list(dict.fromkeys(one.component for one in self._risings if one.component not in self.missing))

    def sample(self) -> None:
        """Reads all counters now."""
        with self._lock:
            for one in self._risings:
                one.read(self._now_ns)

    def use(self, phases_ns: Mapping[str, tuple[int, int]]) -> EnergyUse:
        """What was used in each phase, given when it began and ended: after the meter was entered, and before now.

        Waits until the counters tell of the end, which takes those of cards a tenth of a second.
        """
        self._settle(max((end_ns for _, end_ns in phases_ns.values()), default=0))
        with self._lock:
            components, missing = self.components, self.missing
            phases_j = {
                phase: {name: self._joules(name, *when) for name in components} for phase, when in phases_ns.items()
            }
        return EnergyUse(phases_j, missing, {name: self.names[name] for name in components})

    def power(self, start_ns: int, end_ns: int) -> list[Counter]:
        """What components drew from time to time, by the host's clock; the integral of it is what `use` says."""
        with self._lock:
            return [one for name in self.components for one in self._power_of(name, start_ns, end_ns)]

    def _power_of(self, component: str, start_ns: int, end_ns: int) -> Iterator[Counter]:
        rises = {at for one in self._of(component) for at in one.times_ns if start_ns < at < end_ns}
        edges = [start_ns, *sorted(rises), end_ns] if start_ns < end_ns else []
        for first, last in itertools.pairwise(edges):
            watts = self._joules(component, first, last) / ((last - first) / 1e9)
            yield Counter(POWER, first, {component: watts}, RANK if component == DEVICE else NONE)

    def forget(self, before_ns: int) -> None:
        """Lets go of what was read before, as far as nothing after it needs it."""
        with self._lock:
            for one in self._risings:
                one.forget(before_ns)

    def _joules(self, component: str, start_ns: int, end_ns: int) -> float:
        return sum(one.at_j(end_ns) - one.at_j(start_ns) for one in self._of(component))

    def _of(self, component: str) -> list["_Rising"]:
        return [one for one in self._risings if one.component == component]

    def _settle(self, end_ns: int) -> None:
        """Reads until each counter has risen after that, or for SETTLE_S."""
        until_ns = self._now_ns() + round(SETTLE_S * 1e9)
        self.sample()
        while not all(one.has_risen_since(end_ns) for one in self._risings) and self._now_ns() < until_ns:
            self._ended.wait(self._every_s / 5)
            self.sample()

    def _work(self) -> None:
        while not self._ended.wait(self._every_s):
            self.sample()


class _Rising:
    """One counter as a line that rises for good, from each reading that was higher to the next such one.

    A card renews its counter some ten times a second: between two rises nobody knows when the energy was used.
    `lost` says why the counter is not read any more.
    """

    def __init__(self, counter: EnergyCounter) -> None:
        self._counter = counter
        self.component = counter.component
        self.lost = ""
        self._raw_j, self._read_ns = 0.0, 0
        self.times_ns: list[int] = []
        self._joules: list[float] = []

    def read(self, now_ns: Callable[[], int]) -> None:
        """One more reading."""
        if self.lost:
            return
        try:
            raw_j = self._counter.read_j()
            at_ns = now_ns()
            used_j = self._since_last_j(raw_j, at_ns)
        except (NoCounterError, OSError) as error:
            self.lost = f"{self._counter.name}: {error}"
            return
        if len(self.times_ns) > MOST_KEPT:
            del self.times_ns[1:-1:2], self._joules[1:-1:2]
        if used_j or not self.times_ns:
            self.times_ns.append(at_ns)
            self._joules.append((self._joules[-1] if self._joules else 0.0) + used_j)
        self._raw_j, self._read_ns = raw_j, at_ns

    def _since_last_j(self, raw_j: float, at_ns: int) -> float:
        """What was used since the last reading. Raises NoCounterError for a counter that fell."""
        if not self.times_ns:
            return 0.0
        used_j = raw_j - self._raw_j
        if used_j >= 0:
            return used_j
        used_j += self._counter.range_j
        if not 0 <= used_j <= MOST_W * ((at_ns - self._read_ns) / 1e9 + SLACK_S):
            raise NoCounterError(f"fell from {self._raw_j:.6g} to {raw_j:.6g} J")
        return used_j

    def has_risen_since(self, time_ns: int) -> bool:
        """Whether what was used until then is told; of a counter that is lost nothing more is."""
        return bool(self.lost) or self.times_ns[-1] >= time_ns

    def at_j(self, time_ns: int) -> float:
        """The line at this time."""
        times_ns, joules = self.times_ns, self._joules
        after = bisect.bisect_right(times_ns, time_ns)
        if after == 0 or after == len(times_ns):
            return joules[min(after, len(times_ns) - 1)]
        first_ns, last_ns = times_ns[after - 1], times_ns[after]
        share = (time_ns - first_ns) / (last_ns - first_ns)
        return joules[after - 1] + share * (joules[after] - joules[after - 1])

    def forget(self, before_ns: int) -> None:
        """Lets go of what lies before the last rise before that."""
        gone = max(0, bisect.bisect_right(self.times_ns, before_ns) - 1)
        del self.times_ns[:gone], self._joules[:gone]
