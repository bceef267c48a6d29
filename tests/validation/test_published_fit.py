"""The fit of the paper machines: it finds what made the rows, stays within its bounds, and writes presets."""

import shutil
from dataclasses import replace

import pytest

from sim.problem import Basis, Hardware
from traces.errors import InputError
from validation.published.fit import CASES, Fitted, MachineFit, fit, log_errors, machines, usable, with_values
from validation.published.holdout import folds
from validation.published.predict import predict_row
from validation.published.presets import PRESETS, write_presets
from validation.published.rows import THROUGHPUT, read_rows

T4, L4 = CASES
TRUE = {"prefill efficiency": 0.2, "pin copy": 7e9, "attention per request": 150e-6}


@pytest.fixture(scope="module")
def made_rows():
    """Rows of S2 as a machine with known values would have run them."""
    rows = [row for row in usable(read_rows(THROUGHPUT), L4) if row.schedule == "cgopipe"]
    machine = {"gcp-l4": with_values(Hardware.load("gcp-l4"), L4, TRUE)}
    return [replace(row, tokens_per_s=predict_row(row, machine).tokens_per_s) for row in rows]


def test_a_fit_finds_the_values_that_made_the_rows(made_rows):
    found = fit(L4, made_rows, jobs=1)
    assert found.num_rows == len(made_rows)
    for name, value in TRUE.items():
        assert found.values[name] == pytest.approx(value, rel=0.05), name


def test_a_fit_that_begins_at_the_values_stays_there(made_rows):
    assert max(map(abs, log_errors(made_rows, L4, TRUE))) < 1e-9
    assert fit(L4, made_rows, jobs=1, begin=TRUE).values == pytest.approx(TRUE, rel=1e-3)


def test_one_odd_run_does_not_pull_the_fit(made_rows):
    odd = [*made_rows[:-1], replace(made_rows[-1], tokens_per_s=1.6 * made_rows[-1].tokens_per_s)]
    found = fit(L4, odd, jobs=1, begin=TRUE)
    others = log_errors(made_rows[:-1], L4, found.values)
    assert max(map(abs, others)) < 0.08


def test_values_stay_within_their_bounds(made_rows):
    narrow = MachineFit(
        "gcp-l4",
        ("S2",),
        tuple(
            replace(one, start=value, low=0.9 * value, high=1.1 * value)
            for one, value in zip(L4.parameters, (0.3, 1e10, 1e-4), strict=True)
        ),
    )
    found = fit(narrow, made_rows, jobs=1)
    for one in narrow.parameters:
        assert one.low <= found.values[one.name] <= one.high


def test_rows_without_policy_or_measurement_are_not_fitted_to():
    rows = read_rows(THROUGHPUT)
    assert len(usable(rows, T4)) == 26
    assert {row.schedule for row in usable(rows, T4) if row.setting == "S6"} == {"deepspeed"}
    assert len(usable(rows, L4)) == 14
    assert usable([replace(rows[0], tokens_per_s=None)], T4) == []


def test_presets_hold_what_a_fit_would_set():
    """Every fitted number of a preset is a parameter, is marked so, and lies within its bounds."""
    for case in CASES:
        for parameter in case.parameters:
            machine = Hardware.load(case.several if parameter.several_devices else case.machine)
            for path in parameter.paths:
                assert machine.value(path).basis is Basis.FITTED, path
                assert parameter.low <= machine.value(path) <= parameter.high


def test_presets_of_several_devices_hold_the_values_of_one_by_their_cores():
    one, several = Hardware.load("gcp-t4"), Hardware.load("gcp-2xt4")
    for path in ("pin", "host.request_overhead"):
        parameter = next(parameter for parameter in T4.parameters if path in parameter.paths)
        assert several.value(path) == pytest.approx(one.value(path) * T4.scale(parameter, several), rel=1e-3)


def test_several_devices_get_the_values_of_one_by_their_cores_and_their_own_network():
    values = {one.name: one.start for one in T4.parameters}
    fitted = Fitted(T4, values, 38)
    found = machines([fitted])
    assert list(found) == ["gcp-t4", "gcp-2xt4", "gcp-4xt4"]
    assert found["gcp-t4"].value("pin") == pytest.approx(8e9)
    assert found["gcp-4xt4"].value("pin") == pytest.approx(8e9 * 32 / 24)
    assert found["gcp-4xt4"].value("host.request_overhead") == pytest.approx(200e-6 * 24 / 32)
    assert found["gcp-4xt4"].value("network.bandwidth") == pytest.approx(4e9)
    assert found["gcp-4xt4"].value("device.gemm.compute") == found["gcp-t4"].value("device.gemm.compute")


def test_folds_leave_out_each_row_once_and_keep_repetitions_together(made_rows):
    whole = Fitted(L4, TRUE, len(made_rows))
    parts = folds(whole, made_rows, jobs=1)
    seen = [one.row for part in parts for one in part.predictions]
    assert sorted(map(str, seen)) == sorted(map(str, made_rows))
    twins = [{one.row.num_micro_batches for one in part.predictions if one.row.gen_len == 128} for part in parts]
    assert sum(16 in one for one in twins) == 1
    assert all(abs(one.error) < 0.01 for part in parts for one in part.predictions)


class TestPresets:
    def test_numbers_are_written_and_the_rest_stays(self, tmp_path):
        for name in ("gcp-t4", "gcp-2xt4"):
            shutil.copy(PRESETS / f"{name}.toml", tmp_path)
        before = (tmp_path / "gcp-t4.toml").read_text().splitlines()
        values = {
            "prefill efficiency": 0.123456,
            "pin copy": 7e9,
            "attention per request": 1e-4,
            "network": 3.5e9,
        }
        written = write_presets([Fitted(T4, values, 38)], tmp_path)
        assert [path.name for path in written] == ["gcp-t4.toml", "gcp-2xt4.toml"]
        after = (tmp_path / "gcp-t4.toml").read_text().splitlines()
        assert sum(a != b for a, b in zip(before, after, strict=True)) == 5
        machine = Hardware.load(tmp_path / "gcp-t4.toml")
        assert machine.value("device.gemm.compute") == pytest.approx(0.1235)
        assert machine.value("pin") == pytest.approx(7e9)
        assert machine.value("host.request_overhead").text == "100 us"
        assert "38 published rows with a known policy of S1 and of deepspeed in S6" in machine.value("pin").source
        several = Hardware.load(tmp_path / "gcp-2xt4.toml")
        assert several.network.bandwidth_bytes_per_s == pytest.approx(3.5e9)
        assert several.value("pin") == pytest.approx(7e9 * 32 / 24, rel=1e-3)
        assert several.value("pin").source.endswith("in proportion to the cores")

    def test_a_file_without_the_line_is_refused(self, tmp_path):
        (tmp_path / "gcp-l4.toml").write_text('extends = "l4"\n')
        with pytest.raises(InputError, match=r"gcp-l4.toml: has no line for device.gemm.compute"):
            write_presets([Fitted(L4, TRUE, 14)], tmp_path)
