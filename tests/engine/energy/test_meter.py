"""Joules of stretches of time from counters that are read now and then: begun anew, lost, fallen, renewed seldom."""

import threading

import pytest
from hypothesis import given, settings, strategies as st
from recorded_counters import powercap, show

from engine.device import DEVICE, HOST, EnergyCounter, EnergyCounters, EnergyMeter, EnergyUse, NoCounterError
from engine.device.energy.powercap import counters_by_powercap

S = 10**9
QUICK_S = 1e-4
"""How long a meter pauses, whose thread never begins: it reads when it is told to."""


class Clock:
    """A clock that a test moves."""

    def __init__(self, step_ns=1000):
        self.ns, self.step_ns = 0, step_ns

    def __call__(self):
        self.ns += self.step_ns  # or a meter that waits for a counter would wait for ever
        return self.ns


def metered(read_j, clock, **given):
    counter = EnergyCounter(HOST, "a counter", read_j, **given)
    return EnergyMeter(EnergyCounters((counter,)), QUICK_S, clock)


def sampled(meter, clock, readings, shown):
    """Reads a counter that shows these joules at these times in ns."""
    for at_ns, joules in readings:
        clock.ns, shown["j"] = at_ns, joules
        meter.sample()


def reading(readings, **given):
    """A meter that has read a counter so."""
    clock, shown = Clock(), {"j": readings[0][1]}
    clock.ns = readings[0][0]
    meter = metered(lambda: shown["j"], clock, **given)
    sampled(meter, clock, readings, shown)
    return meter


def used(meter, start_ns, end_ns, component=HOST):
    return meter.use({"all": (start_ns, end_ns)}).by_component.get(component)


def test_between_two_readings_energy_is_used_steadily():
    meter = reading([(0, 100.0), (2 * S, 300.0), (4 * S, 320.0)])
    assert used(meter, 0, 4 * S) == pytest.approx(220.0, rel=1e-5)
    assert used(meter, S, 3 * S) == pytest.approx(110.0, rel=1e-5)


def test_phases_add_up_to_the_whole():
    meter = reading([(0, 0.0), (S, 7.0), (3 * S, 50.0)])
    found = meter.use({"prefill": (0, 2 * S), "decode": (2 * S, 3 * S)})
    assert found.total_j == pytest.approx(50.0, rel=1e-5)
    assert found.phases_j["prefill"][HOST] == pytest.approx(28.5, rel=1e-5)


def test_a_counter_that_begins_anew_goes_on(tmp_path):
    clock, zones = Clock(), powercap(tmp_path, dram=False, energy_uj=262_143_000_000)
    meter = EnergyMeter(counters_by_powercap(tmp_path), QUICK_S, clock)
    meter.sample()
    clock.ns = S
    show(zones["package-0"], 49_671_150)
    meter.sample()
    assert used(meter, 0, S) == pytest.approx(50.0, rel=1e-3)


def test_a_counter_that_goes_back_is_lost_and_says_so():
    meter = reading([(0, 5000.0), (S, 5100.0), (2 * S, 90.0)])
    found = meter.use({"all": (0, 2 * S)})
    assert found.total_j is None, "an invented number would be worse than none"
    assert "fell from 5100 to 90 J" in found.missing[HOST]


def test_one_that_goes_back_far_below_its_range_did_not_begin_anew():
    meter = reading([(0, 200_000.0), (S, 100_000.0)], range_j=262_143.0)
    assert "fell" in meter.missing[HOST]


def test_two_packages_are_one_host():
    readings = {"a": 0.0, "b": 0.0}
    counters = EnergyCounters(tuple(EnergyCounter(HOST, name, lambda name=name: readings[name]) for name in readings))
    clock = Clock()
    meter = EnergyMeter(counters, QUICK_S, clock)
    meter.sample()
    clock.ns, readings["a"], readings["b"] = S, 30.0, 12.0
    meter.sample()
    found = meter.use({"all": (0, S)})
    assert found.total_j == pytest.approx(42.0, rel=1e-4)
    assert found.counters == {HOST: "a, b"}


def test_a_package_that_is_lost_takes_the_host_with_it():
    readings = {"a": 0.0, "b": 0.0}

    def read(name):
        if readings[name] < 0:
            raise OSError(5, "Input/output error")
        return readings[name]

    counters = EnergyCounters(tuple(EnergyCounter(HOST, name, lambda name=name: read(name)) for name in readings))
    clock = Clock()
    meter = EnergyMeter(counters, QUICK_S, clock)
    meter.sample()
    clock.ns, readings["a"], readings["b"] = S, 30.0, -1.0
    meter.sample()
    found = meter.use({"all": (0, S)})
    assert found.by_component == {}
    assert found.missing[HOST].startswith("b: ")
    assert meter.power(0, S) == []


def test_nothing_counted_is_no_joules_rather_than_none_used():
    with EnergyMeter(EnergyCounters(missing={HOST: "no counter here"})) as meter:
        found = meter.use({"decode": (0, S)})
    assert found.total_j is None
    assert found.per_token(7) is None
    assert found.to_dict()["missing"] == {HOST: "no counter here"}
    assert found.in_words(7) == "no energy counter of host: no counter here\n"


def test_the_end_of_a_phase_waits_for_a_counter_that_is_renewed_seldom():
    """A card draws 100 W and tells of it ten times a second: the last tenth is not left out."""
    clock = Clock(step_ns=S // 500)

    def read_j():
        return 100.0 * (clock.ns // (S // 10)) / 10

    meter = metered(read_j, clock)
    while clock.ns < S + 95 * S // 1000:
        meter.sample()
    end_ns = clock.ns
    assert used(meter, S // 2, end_ns) == pytest.approx(100.0 * (end_ns - S // 2) / S, rel=0.04)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(1, S), st.floats(0, 500)), min_size=1, max_size=30),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_the_integral_of_the_power_counter_is_what_was_used(steps, first, last):
    at_ns, joules, readings = 0, 0.0, [(0, 0.0)]
    for step_ns, step_j in steps:
        at_ns, joules = at_ns + step_ns, joules + step_j
        readings.append((at_ns, joules))
    meter = reading(readings)
    start_ns, end_ns = sorted((round(first * at_ns), round(last * at_ns)))
    drawn = meter.power(start_ns, end_ns)
    edges = [one.time_ns for one in drawn] + [end_ns]
    integral = sum(one.values[HOST] * (edges[i + 1] - edges[i]) / S for i, one in enumerate(drawn))
    whole = used(meter, start_ns, end_ns)
    assert integral == pytest.approx(whole, rel=1e-6, abs=1e-6)
    assert -1e-6 <= whole <= joules + 1e-6


def test_what_is_let_go_of_changes_nothing_after_it():
    readings = [(i * S, float(i * i)) for i in range(10)]
    kept, shorter = reading(readings), reading(readings)
    shorter.forget(5 * S + 7)
    assert used(shorter, 5 * S + 7, 9 * S) == used(kept, 5 * S + 7, 9 * S)


def test_readings_do_not_pile_up(monkeypatch):
    monkeypatch.setattr("engine.device.energy.meter.MOST_KEPT", 10)
    meter = reading([(i * S, float(i)) for i in range(1000)])
    assert used(meter, 0, 999 * S) == pytest.approx(999.0, rel=1e-4)
    assert len(meter.power(0, 999 * S)) <= 12


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_whatever_ends_the_work_ends_the_thread(error):
    before = threading.active_count()
    reads = iter(range(10**9))
    counters = EnergyCounters((EnergyCounter(HOST, "a counter", lambda: float(next(reads))),))

    def work():
        with EnergyMeter(counters, 0.001):
            assert threading.active_count() == before + 1
            raise error

    with pytest.raises(error):
        work()
    assert threading.active_count() == before


def test_a_counter_that_raises_something_in_the_thread_is_lost_and_the_others_go_on():
    def broken():
        raise NoCounterError("it is gone")

    shown = iter(range(10**9))
    counters = EnergyCounters((EnergyCounter(DEVICE, "card", broken), EnergyCounter(HOST, "rapl", lambda: next(shown))))
    with EnergyMeter(counters, 0.001) as meter:
        pass
    assert meter.missing == {DEVICE: "card: it is gone"}
    assert meter.components == [HOST]


def test_uses_add_up_and_what_one_lacks_both_lack():
    one = EnergyUse({"prefill": {HOST: 1.0, DEVICE: 2.0}, "decode": {HOST: 3.0, DEVICE: 4.0}}, {}, {HOST: "a"})
    both = one + EnergyUse({"prefill": {HOST: 10.0}, "decode": {HOST: 30.0}}, {DEVICE: "lost"}, {HOST: "a"})
    assert both.by_component == {HOST: 44.0}
    assert both.missing == {DEVICE: "lost"}
    assert both.per_token(11) == 4.0
    assert EnergyUse.from_dict(both.to_dict()) == both
    assert "energy: 44.0 J, 4 J/token (prefill 11.0 J, decode 33.0 J; host 44.0 J)" in both.in_words(11)
