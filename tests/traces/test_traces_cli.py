"""`python -m traces`: readable at 100 columns, the same numbers as JSON, one clear line for what cannot be read."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
from trace_examples import SIMULATED, span, two_devices

from traces.cli import main
from traces.files import write_trace
from traces.trace import Trace

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def beside_the_files(tmp_path, monkeypatch):
    """Names of files are short, so that lines break where they do wherever tests run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture
def run():
    """The file of a run on two devices."""
    path = Path("run [1].json.gz")
    policy = {"attention": "cpu", "pages": None, "micro_batch_size": 36}
    trace = two_devices()
    write_trace(Trace(trace.metadata | {"policy": policy, "model": "mixtral-8x7b"}, trace.spans, trace.counters), path)
    return str(path)


@pytest.fixture
def slower():
    """The same run with Experts twice as long and without the last all-reduce."""
    spans = [one for one in two_devices().spans if one.op != "AllReduce"]
    spans = [one._replace(cause=-1, end_ns=one.end_ns + 4_389 * (one.op == "Experts")) for one in spans]
    path = Path("slower.json")
    write_trace(Trace({"origin": "emulated device"}, spans), path)
    return str(path)


def told(capsys, *argv):
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert max(map(len, out.splitlines())) <= 100
    return out


def row(out, *cells):
    """The one line of a table that begins with these cells."""
    found = [line.split() for line in out.splitlines() if line.split()[: len(cells)] == list(cells)]
    assert len(found) == 1, found
    return found[0]


def test_summary_shows_lanes_ops_and_memory(run, capsys):
    out = told(capsys, "summary", run)
    assert f"{run}: simulated, makespan 10.0 µs" in " ".join(out.split())
    facts = "schedule cgopipe; model mixtral-8x7b; hardware gcp-2xt4; policy attention cpu, micro_batch_size 36"
    assert facts in " ".join(out.split())
    assert row(out, "GPU", "3")[:7] == ["GPU", "3", "5.39", "µs", "53.9%", "4.61", "µs"]
    assert row(out, "GPU", "3")[7:10] == ["LoadHidden", "4.11", "µs,"]
    assert "8.50 kB" in out
    assert "10.6 GB/s" in out
    assert row(out, "Experts")[:5] == ["Experts", "GPU", "2", "8.78", "µs"]
    assert "Memory peaks: host 1.10 TB, pinned 4.00 kB, device 8.41 kB, device:1 8.41 kB" in out


def test_summary_of_several_files_shows_each(run, slower, capsys):
    out = told(capsys, "summary", run, slower)
    assert f"{run}: simulated" in out
    assert f"{slower}: emulated device" in out
    assert "not recorded in this trace" in out


def test_critical_path_shows_shares_gaps_and_stretches(run, capsys):
    out = told(capsys, "critical-path", run, "--top", "2")
    assert "Critical path: 7 of 12 tasks. Gaps, in which none of them ran: 1, 10 ns (0.1%) in all." in " ".join(
        out.split()
    )
    assert row(out, "Experts", "4.39") == ["Experts", "4.39", "µs", "43.9%", "10", "ns"]
    assert row(out, "CPU") == ["CPU", "3.51", "µs", "35.1%", "0"]
    stretches = out[out.index("longest stretches") :]
    assert "Experts s1 L0 m0" in stretches
    assert "OffloadQKV" not in stretches


def test_diff_shows_where_the_time_went(run, slower, capsys):
    out = told(capsys, "diff", run, slower)
    assert "B − A: +4.39 µs (+43.9%)" in out
    assert row(out, "sum", "10.0") == ["sum", "10.0", "µs", "14.4", "µs", "+4.39", "µs"]
    assert row(out, "Experts", "GPU", "2")[-2:] == ["100.0%", "+100.0%"]
    assert "Only in A: 1 task, 493 ns: 1 AllReduce. First: AllReduce s1 L0 m0." in out
    assert "Only in B: no task." in out


@pytest.mark.parametrize("command", ["summary", "critical-path", "diff"])
def test_json_on_standard_output_is_all_there_is(command, run, capsys):
    assert main([command, run, *([run] if command == "diff" else []), "--json", "-"]) == 0
    results = json.loads(capsys.readouterr().out)
    if command == "summary":
        assert results["traces"][0]["file"] == run
        assert results["traces"][0]["lanes"]["GPU"]["waited_s"]["LoadHidden"] == pytest.approx(4_106e-9)
    elif command == "critical-path":
        assert results["by_op"]["Experts"] == {"s": pytest.approx(4_389e-9), "share": pytest.approx(4_389 / 9_999)}
    else:
        assert results["change_s"] == results["where_the_time_went"]["total_s"] == 0
        assert results["files"] == {"a": run, "b": run}


def test_json_in_a_file_comes_with_the_tables(run, tmp_path, capsys):
    assert "makespan" in told(capsys, "summary", run, "--json", str(tmp_path / "out.json"))
    assert json.loads((tmp_path / "out.json").read_text())["traces"][0]["makespan_s"] == pytest.approx(9_999e-9)


def test_an_empty_trace_can_be_shown(tmp_path, capsys):
    path = str(tmp_path / "empty.json")
    write_trace(Trace(SIMULATED), path)
    for argv in (["summary", path], ["critical-path", path], ["diff", path, path]):
        told(capsys, *argv)


def content_of(run):
    return gzip.decompress(Path(run).read_bytes())


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda run: None, "cannot be read: No such file"),
        (lambda run: b"", "damaged, or not JSON: Input data was truncated"),
        (lambda run: Path(run).read_bytes()[:300], "damaged gzip file"),
        (lambda run: content_of(run)[:900], "damaged, or not JSON: Input data was truncated"),
        (lambda run: b"\xff\xfe\x00", "damaged, or not JSON: JSON is malformed: invalid character (byte 0)"),
        (lambda run: b"step,seconds\n1,2\n", "damaged, or not JSON"),
        (lambda run: b"[]", "damaged, or not JSON: Expected `object`, got `array`"),
        (lambda run: b'{"loss": 0.1}', "no trace: it has neither a section 'cgopipe' nor any 'traceEvents'"),
        (lambda run: b'{"traceEvents": [{"ph": "X", "cat": "kernel", "name": "gemm"}]}', "missing required field `ts`"),
        (
            lambda run: b'{"traceEvents": [{"ph": "i", "name": "here"}]}',
            "neither a trace of this project nor a PyTorch profile",
        ),
        (lambda run: content_of(run).replace(b'"schema": 1', b'"schema": 9'), "reads schema 1"),
        (
            lambda run: content_of(run).replace(b'"op":"Experts"', b'"op":7'),
            "Expected `str`, got `int`",
        ),
    ],
)
@pytest.mark.parametrize("command", ["summary", "critical-path", "diff"])
def test_a_file_that_cannot_be_used_gets_one_line(command, damage, said, run, tmp_path, capsys):
    path = tmp_path / "broken.json"
    content = damage(run)
    if content is not None:
        path.write_bytes(content)
    assert main([command, *([run] if command == "diff" else []), str(path)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"error: {path}: ")
    assert said in err


def test_causes_that_go_round_are_told_with_the_file(tmp_path, run, capsys):
    trace = Trace(SIMULATED, [span(1, "PreAttn"), span(2, "Attn", "CPU", cause=1)])
    path = tmp_path / "round.json"
    write_trace(trace, path)
    path.write_text(path.read_text().replace('"cause":-1', '"cause":2'))
    for argv in (["critical-path", str(path)], ["diff", run, str(path)]):
        assert main(argv) == 2
        assert f"error: {path}: span " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["summary"], "required: FILE"),
        (["diff", "a.json"], "required: B"),
        (["critical-path", "a.json", "--top", "0"], "--top: 0 is not allowed"),
    ],
)
def test_a_mistake_on_the_command_line_gets_one_line(argv, said, capsys):
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_results_that_cannot_be_written_get_one_line(run, tmp_path, capsys):
    assert main(["summary", run, "--json", str(tmp_path / "missing" / "out.json")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_it_runs_as_a_module_without_torch(run):
    script = (
        "import runpy, sys; sys.argv = ['traces', 'critical-path', sys.argv[1]]\n"
        "try: runpy.run_module('traces', run_name='__main__')\n"
        "except SystemExit as end: print('code', end.code, 'torch' in sys.modules)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", script, str(Path(run).resolve())], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert shown.stdout.endswith("code 0 False\n")
