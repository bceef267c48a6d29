"""Laws that every prediction keeps: no lane above 1, time that scales with rates, overheads that cost."""

from dataclasses import replace

import pytest
from hypothesis import given, strategies as st
from setup_examples import SETTINGS, any_setup
from sim_examples import few_layers, made_setup

from sim.planning.bounds import lanes_tokens_per_s
from sim.problem import Workload
from sim.simulation import predict

ANY = any_setup(st.integers(1, 40))
ROUNDING = 1e-9

SAMPLED = 0.02
"""What interpolated waits are good for."""

ANOMALY = 0.02
"""A task that starts earlier may share a pool with others that it did not meet before: see docs/simulator.md."""

OVERHEADS = (
    "device.launch_latency",
    "device.request_overhead",
    "host.launch_latency",
    "host.request_overhead",
    "link.latency",
)


def on(setup, machine):
    """The same setup on another machine."""
    return replace(setup, problem=replace(setup.problem, hardware=machine))


def is_time(path):
    return path.endswith(("latency", "overhead"))


@given(setup=ANY)
@SETTINGS
def test_no_lane_works_longer_than_the_run_lasts(setup):
    said = predict(setup, compiled=True)
    assert said.lower_bound_s <= said.total_s * (1 + ROUNDING)
    for lane in said.lanes.values():
        assert lane.utilisation <= 1 + ROUNDING
        assert lane.busy_s + sum(lane.waited_s.values()) <= said.total_s * (1 + SAMPLED)
    assert said.throughput_tokens_per_s <= lanes_tokens_per_s(setup) * (1 + SAMPLED)


@pytest.mark.parametrize("name", ["flexgen-c", "flexgen", "cgopipe", "fastdecode"])
def test_a_run_is_over_when_its_last_copy_is(name):
    """Of one token it is the copies of the last layer's cache that end last, behind the token."""
    setup = made_setup(name, 64, 2, model=few_layers("mixtral-8x7b", 2), workload=Workload.fixed(400, 1))
    slow = on(setup, setup.problem.hardware.with_value("link.d2h", 2e8).with_value("link.d2h_pageable", 2e8))
    for said in (predict(slow), predict(slow, compiled=True), predict(slow, exact=True)):
        assert said.lanes["D2H"].utilisation <= 1
        assert said.lanes["D2H"].busy_s + sum(said.lanes["D2H"].waited_s.values()) == pytest.approx(said.total_s)
        assert said.bottleneck == "D2H"


@given(setup=any_setup(st.integers(1, 12)))
@SETTINGS
def test_all_rates_doubled_and_all_times_halved_halve_the_time(setup):
    machine = setup.problem.hardware
    for path, value in machine.quantities():
        if is_time(path):
            machine = machine.with_value(path, value / 2)
        elif path.endswith(("peak", "bandwidth", "h2d", "d2h", "duplex", "pageable")) or path == "pin":
            machine = machine.with_value(path, value * 2)
    said, faster = predict(setup, compiled=True), predict(on(setup, machine), compiled=True)
    assert faster.total_s == pytest.approx(said.total_s / 2, rel=1e-3)


@given(setup=any_setup(st.integers(1, 12)))
@SETTINGS
def test_overheads_of_zero_cost_no_time(setup):
    machine = setup.problem.hardware
    for path in OVERHEADS:
        machine = machine.with_value(path, 0.0)
    said, without = predict(setup, compiled=True), predict(on(setup, machine), compiled=True)
    assert without.total_s <= said.total_s * (1 + ANOMALY)
