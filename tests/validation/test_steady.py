"""Runs that lie in a slow time of the machine are made again, whatever they took; the counts survive a restart."""

import itertools

import pytest

from engine.device import EmulatedDevice
from validation.campaign.steady import (
    FASTER_LOOKS,
    FIRST_LOOKS,
    FRESH_S,
    LOOKS,
    PATIENCE_S,
    PAUSE_S,
    TRIES,
    Reference,
    Steady,
    told,
)


class Machine:
    """Each entry is what the reference takes in one look of `LOOKS`; the last one stays."""

    def __init__(self, *looks):
        self._looks = itertools.chain.from_iterable([look] * LOOKS for look in ([1.0] * FIRST_LOOKS + list(looks)))
        self._last = 1.0
        self.slept_s = self.now_s = 0.0

    def reference(self):
        self._last = next(self._looks, self._last)
        return self._last

    def sleep(self, seconds):
        self.slept_s += seconds
        self.now_s += seconds

    def clock(self):
        return self.now_s


@pytest.fixture
def file(tmp_path):
    return tmp_path / "speed.json"


def watch(machine, file):
    steady = Steady(machine.reference, file, machine.sleep, machine.clock)
    machine.slept_s = 0.0
    return steady


def counting():
    numbers = itertools.count(1)
    return lambda: next(numbers)


def test_a_run_on_a_steady_machine_is_made_once(file):
    steady = watch(Machine(1.05, 0.96), file)
    assert steady(counting()) == 1
    assert (steady.counts.made_again, steady.counts.kept_unsteady) == (0, 0)


def test_a_run_after_which_the_machine_is_slow_is_made_again_when_it_is_not(file):
    machine = Machine(1.3, 1.3, 1.0, 1.0)
    steady = watch(machine, file)
    assert steady(counting()) == 2
    assert steady.counts.made_again == 1
    assert machine.slept_s == pytest.approx(4 * LOOKS * PAUSE_S)


def test_a_run_is_not_begun_while_the_machine_is_slow(file):
    machine = Machine(1.3, 1.0, 1.0)
    steady = watch(machine, file)
    machine.now_s += 10 * FRESH_S
    assert steady(counting()) == 1
    assert machine.slept_s == pytest.approx(3 * LOOKS * PAUSE_S)


def test_the_look_after_one_run_is_the_look_before_the_next_while_it_is_fresh(file):
    machine = Machine(1.0, 1.0, 1.0, 1.0)
    steady, make = watch(machine, file), counting()
    assert (steady(make), steady(make)) == (1, 2)
    assert machine.slept_s == pytest.approx(2 * LOOKS * PAUSE_S)
    machine.now_s += 10 * FRESH_S
    steady(make)
    assert machine.slept_s == pytest.approx(4 * LOOKS * PAUSE_S)


def test_a_machine_that_stays_faster_was_slow_before(file):
    steady = watch(Machine(*[0.8] * FASTER_LOOKS, 1.0, 0.8, 0.8), file)
    make = counting()
    assert [steady(make) for _ in range(FASTER_LOOKS)] == [1, 2, 3]
    assert (steady.counts.usual_s, steady.counts.found_faster) == (0.8, 1)
    assert steady(make) == 5, "what was usual before is slow now"


def test_one_fast_look_changes_nothing(file):
    steady = watch(Machine(0.8, 1.0, 0.8, 1.0), file)
    make = counting()
    assert [steady(make) for _ in range(4)] == [1, 2, 3, 4]
    assert steady.counts.usual_s == 1.0


def test_patience_ends_and_the_run_is_kept_and_counted(file):
    machine = Machine(1.5)
    steady = watch(machine, file)
    assert steady(counting()) == TRIES
    assert machine.slept_s == pytest.approx((TRIES - 1) * PATIENCE_S + TRIES * LOOKS * PAUSE_S, rel=0.05)
    assert (steady.counts.made_again, steady.counts.kept_unsteady) == (TRIES - 1, 1)


def test_counts_and_the_usual_time_survive_a_restart(file):
    watch(Machine(1.3, 1.0, 1.0), file)(counting())
    machine = Machine()
    again = Steady(machine.reference, file, machine.sleep, machine.clock)
    assert (again.counts.usual_s, again.counts.made_again) == (1.0, 1)
    assert machine.slept_s == 0
    assert "itself: 1 times" in told(file)[0]
    assert told(file.with_name("other.json")) == []


def test_the_usual_time_is_that_of_undisturbed_looks(file):
    slow = iter([1.0, 1.3, 1.0, 1.0, 1.5, 1.5] * FIRST_LOOKS)
    assert Steady(lambda: next(slow), file, lambda seconds: None).counts.usual_s == 1.0


def test_the_reference_is_timed_on_the_device_s_lane():
    reference = Reference(lambda: EmulatedDevice(None, None, 1 << 20))
    assert 0 < reference() < 10
