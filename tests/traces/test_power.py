"""What parts of a machine drew, from the samples of a trace, and the picture of it."""

import json

import pytest
from trace_examples import SIMULATED, span

from traces.analysis import power_of
from traces.cli.commands import main
from traces.files import write_trace
from traces.trace import NONE, POWER, Counter, Trace

MS = 10**6


def drawn():
    """Two devices and a host: device 0 works for the first of three milliseconds."""
    counters = [
        Counter(POWER, 0, {"device": 300.0, "link": 2.0}, 0),
        Counter(POWER, 1 * MS, {"device": 50.0, "link": 2.0}, 0),
        Counter(POWER, 3 * MS, {"device": 50.0, "link": 2.0}, 0),
        Counter(POWER, 0, {"device": 60.0}, 1),
        Counter(POWER, 3 * MS, {"device": 60.0}, 1),
        Counter(POWER, 0, {"host": 100.0}, NONE),
        Counter(POWER, 2 * MS, {"host": 140.0}, NONE),
        Counter(POWER, 3 * MS, {"host": 100.0}, NONE),
    ]
    return Trace(SIMULATED, [span(0, end_ns=1 * MS), span(1, "Attn", "CPU", 2 * MS, 3 * MS)], counters)


def test_a_sample_holds_until_the_next():
    found = {one.name: (one.joules, one.mean_w, one.peak_w) for one in power_of(drawn())}
    assert list(found) == ["device", "link", "device:1", "host"]
    assert found["device"] == pytest.approx((0.4, 400 / 3, 300))
    assert found["device:1"] == pytest.approx((0.18, 60, 60))
    assert found["host"] == pytest.approx((0.34, 340 / 3, 140))


def test_a_trace_without_the_counter_has_none():
    assert power_of(Trace(SIMULATED, [span(0)])) == ()


def test_it_is_told_written_and_drawn(tmp_path, capsys):
    path, picture = tmp_path / "run.json", tmp_path / "run.png"
    write_trace(drawn(), path)
    assert main(["summary", str(path), "--plot", str(picture)]) == 0
    assert "device:1" in capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main(["summary", str(path), "--json", "-"]) == 0
    power = json.loads(capsys.readouterr().out)["traces"][0]["power"]
    assert power["host"] == pytest.approx({"joules": 0.34, "mean_w": 340 / 3, "peak_w": 140})


def test_one_picture_is_of_one_trace(tmp_path, capsys):
    path = tmp_path / "run.json"
    write_trace(drawn(), path)
    assert main(["summary", str(path), str(path), "--plot", str(tmp_path / "run.png")]) != 0
    assert "--plot: draws one trace, 2 are given" in capsys.readouterr().err
