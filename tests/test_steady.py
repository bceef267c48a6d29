"""Runs that lie in a slow time of the machine are made again, whatever they took; the counts survive a restart."""

import itertools

import pytest

from engine.device.emulated import EmulatedDevice
from validation.campaign.steady import FIRST_LOOKS, PATIENCE_S, PAUSE_S, TRIES, Reference, Steady, told


class Machine:
    """Looks in order: each entry is how long the reference takes; the last one stays."""

    def __init__(self, *looks):
        self._looks = iter([1.0] * FIRST_LOOKS + list(looks))
        self._last = 1.0
        self.slept_s = 0.0

    def reference(self):
        self._last = next(self._looks, self._last)
        return self._last

    def sleep(self, seconds):
        self.slept_s += seconds


@pytest.fixture
def file(tmp_path):
    return tmp_path / "speed.json"


def watch(machine, file):
    steady = Steady(machine.reference, file, machine.sleep)
    machine.slept_s = 0.0
    return steady


def counting():
    numbers = itertools.count(1)
    return lambda: next(numbers)


def test_a_run_on_a_steady_machine_is_made_once(file):
    steady = watch(Machine(1.05, 0.96), file)
    assert steady(counting()) == 1
    assert (steady.counts.made_again, steady.counts.kept_unsteady) == (0, 0)


def test_a_run_after_which_the_machine_is_slow_is_made_again(file):
    machine = Machine(1.0, 1.3, 1.3, 1.0, 1.0)
    steady = watch(machine, file)
    assert steady(counting()) == 2
    assert steady.counts.made_again == 1
    assert machine.slept_s == PAUSE_S


def test_a_machine_that_became_faster_is_not_the_usual_one_either(file):
    assert watch(Machine(1.0, 0.7, 1.0, 1.0), file)(counting()) == 2


def test_patience_ends_and_the_run_is_kept_and_counted(file):
    machine = Machine(1.5)
    steady = watch(machine, file)
    assert steady(counting()) == TRIES
    assert machine.slept_s == TRIES * PATIENCE_S
    assert (steady.counts.made_again, steady.counts.kept_unsteady) == (TRIES - 1, 1)


def test_counts_and_the_usual_time_survive_a_restart(file):
    watch(Machine(1.0, 1.3, 1.0, 1.0), file)(counting())
    machine = Machine()
    again = Steady(machine.reference, file, machine.sleep)
    assert (again.counts.usual_s, again.counts.made_again) == (1.0, 1)
    assert machine.slept_s == 0
    assert "1 times" in told(file)[0]
    assert told(file.with_name("other.json")) == []


def test_the_usual_time_is_that_of_undisturbed_looks(file):
    slow = iter([1.0, 1.3, 1.0, 1.5] * FIRST_LOOKS)
    assert Steady(lambda: next(slow), file, lambda seconds: None).counts.usual_s == 1.0


def test_the_reference_is_timed_on_the_device_s_lane():
    reference = Reference(lambda: EmulatedDevice(None, None, 1 << 20))
    assert 0 < reference() < 10
