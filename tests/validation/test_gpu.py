"""A proof in a folder: it runs whole at its tiniest, is killed and goes on, keeps to its time, tells what it found."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from schemas import faults
from short_calibrations import short_calibrations

from traces.files import UNFINISHED, read_trace
from validation.cli import main
from validation.gpu.record import LARGEST_FILE_BYTES, ProofRecord
from validation.gpu.scale import scale_named
from validation.gpu.stages import REPORT, STAGES
from validation.gpu.stages.tokens import SCHEDULES
from validation.gpu.workbench import Workbench

ROOT = Path(__file__).resolve().parents[2]
MOST_FILES = 8
PATIENCE_S = 300
PROGRAM = """
import sys, tempfile
from pathlib import Path
from recorded_counters import live_powercap
from short_calibrations import short_calibrations
from validation.cli import main
with short_calibrations(), tempfile.TemporaryDirectory() as folder, live_powercap(Path(folder), (150.0, 12.0)):
    sys.exit(main(sys.argv[1:]))
"""
"""`python -m validation`, on a machine whose processors and memory have counters."""
KILLED_IN = "calibration"
"""The stage that runs when the first call is killed."""


def command(folder, *more):
    return ["gpu", "--out", str(folder), "--scale", "tiny", "--device", "emulated", *more]


def in_a_process(folder, *more):
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests" / "helpers")))
    environment = {**os.environ, "PYTHONPATH": paths, "COLUMNS": "80"}
    argv = [sys.executable, "-c", PROGRAM, *command(folder, *more)]
    return subprocess.Popen(argv, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def begun(folder, stage):
    file = folder / "proof.json"
    return file.exists() and bool(json.loads(file.read_text())["stages"].get(stage))


@pytest.fixture(scope="module")
def proof(tmp_path_factory):
    """A whole proof: killed when a stage has its first result, and resumed. Folder, record at the kill, and output."""
    folder = tmp_path_factory.mktemp("gpu") / "proof"
    with in_a_process(folder) as first:
        patience = time.monotonic() + PATIENCE_S
        while not begun(folder, KILLED_IN) and first.poll() is None and time.monotonic() < patience:
            time.sleep(0.05)
        first.send_signal(signal.SIGKILL)
        first.communicate()
    assert first.returncode == -signal.SIGKILL
    killed = ProofRecord.read(folder)
    (folder / UNFINISHED.replace("*", "1-proof.json")).write_text("half a fi")
    with in_a_process(folder, "--resume") as second:
        told, progress = second.communicate(timeout=PATIENCE_S)
    assert second.returncode == 0, progress
    return folder, killed, told, progress


@pytest.mark.slow
class TestAWholeProof:
    def test_every_piece_of_every_stage_comes_to_an_end(self, proof):
        folder, *_ = proof
        record = ProofRecord.read(folder)
        bench = Workbench("emulated", scale_named("tiny"), record)
        assert {stage.name: [piece.name for piece in stage.pieces(bench)] for stage in STAGES} == {
            name: list(pieces) for name, pieces in record.stages.items()
        }
        assert all("result" in outcome for pieces in record.stages.values() for outcome in pieces.values())

    def test_what_was_done_before_the_kill_is_not_done_again(self, proof):
        folder, killed, _, progress = proof
        whole = ProofRecord.read(folder).stages
        assert 0 < len(killed.stages[KILLED_IN]) < len(whole[KILLED_IN]), "killed in the middle of a stage"
        for stage, pieces in killed.stages.items():
            for name, outcome in pieces.items():
                assert whole[stage][name] == outcome
                assert f"{stage}: {name} …" not in progress

    def test_the_folder_is_small_and_holds_nothing_unfinished(self, proof):
        folder, *_ = proof
        files = [file for file in folder.rglob("*") if file.is_file()]
        assert {file.name for file in files} == {
            "proof.json", "traces.zip", "machine-m.toml", "machine-q.toml", "report.txt", "report.json", "report.png"
        }  # fmt: skip
        assert len(files) <= MOST_FILES
        assert max(file.stat().st_size for file in files) <= LARGEST_FILE_BYTES
        assert not list(folder.glob(UNFINISHED))

    def test_tokens_and_logits_are_those_of_the_plain_model(self, proof):
        folder, *_ = proof
        record = ProofRecord.read(folder)
        equal = [one for one in record.results("tokens").values() if "met" in one]
        assert len(equal) == len(SCHEDULES) * len(scale_named("tiny").families)
        assert all(one["met"] and one["equal"] == one["requests"] for one in equal)
        parity = record.results("parity")
        assert all(one["met"] for name, one in parity.items() if not name.startswith("plain"))

    def test_every_run_was_predicted_before_and_its_trace_is_kept(self, proof):
        folder, *_ = proof
        record, scale = ProofRecord.read(folder), scale_named("tiny")
        pieces = list(record.stages["runs"])
        bench = Workbench("emulated", scale, record)
        for model in scale.models:
            cases = {case.name: case for case in bench.cases(model)}
            said = record.results("runs")[f"predictions, {model}"]
            runs = [name for name in pieces if name.rpartition(".")[0] in said]
            assert len(runs) == len(said) * scale.repeats
            assert pieces.index(f"predictions, {model}") < min(map(pieces.index, runs))
            for name in runs:
                with record.unpacked(f"{name}.json.gz") as (file,):
                    trace = read_trace(file)
                assert trace.origin == "emulated device"
                run = record.results("runs")[name]
                case = cases[name.rpartition(".")[0]]
                assert run["generated_tokens"] == case.batch_size * case.gen_len
                assert run["lanes"]["H2D"]["busy_s"] == pytest.approx(trace.busy_ns()["H2D", 0] / 1e9)

    def test_the_joules_of_every_run_are_measured_and_predicted_before(self, proof):
        folder, *_ = proof
        record = ProofRecord.read(folder)
        said = {name: one for key, found in record.results("runs").items() if key.startswith("predictions")
                for name, one in found.items()}  # fmt: skip
        runs = {name: one for name, one in record.results("runs").items() if "lanes" in one}
        assert all(one["energy_j_per_token"] > 0 for one in runs.values())
        assert all(said[name.rpartition(".")[0]]["energy"]["total_j"] > 0 for name in runs)
        assert {part for one in runs.values() for part in one["energy"]["by_component_j"]} == {"host", "host memory"}
        report = json.loads((folder / "report.json").read_text())
        assert all(run["energy"]["counted"] == ["host", "host memory"] for run in report["findings"]["runs"])
        text = (folder / "report.txt").read_text()
        assert "energy of host, host memory: measured (emulated device), predicted" in text
        assert "watts, measured by counters" in text
        assert "Not counted: device: the host's cores play the device" in text

    def test_the_profiler_tells_the_same_tasks(self, proof):
        folder, *_ = proof
        for found in ProofRecord.read(folder).results("times").values():
            assert (found["only_ours"], found["only_profiler"]) == (0, 0)
            assert {"GPU", "H2D"} <= set(found["lanes"])
            gpu = found["lanes"]["GPU"]
            assert gpu["profiler_s"] <= 1.02 * gpu["ours_s"], "a range lies inside the marks of its task"

    def test_the_report_as_json_is_what_its_schema_says(self, proof):
        folder, *_ = proof
        report = json.loads((folder / "report.json").read_text())
        assert faults("gpu", report) == []
        assert faults("campaign", {"schema": report["schema"], **report["findings"]}) == []
        assert report["failures"] == report["left_out"] == report["findings"]["missing"] == []
        assert report["predictions_unchanged"] is True
        assert set(report["regrets"]) == {f"{name}, {count} requests" for name in "mq" for count in (1, 4)}
        assert -1 < report["whole_layer1_error"] < 0.1, (
            "the law leaves out hand-overs, so that it is too quick if anything"
        )
        assert all(one["done"] and not one["failed"] for one in report["counts"])

    def test_the_report_as_text_fits_80_columns_and_says_emulated(self, proof):
        folder, _, told, _ = proof
        text = (folder / "report.txt").read_text()
        assert told == text
        assert max(map(len, text.splitlines())) <= 80
        assert "A proof on emulated device" in text
        assert "real GPU" not in text
        for layer in "01234":
            assert f"\n{layer}      " in text

    def test_the_report_is_made_anew_without_a_device(self, proof, capsys, monkeypatch):
        folder, _, told, _ = proof
        monkeypatch.setattr("validation.gpu.workbench.make_device", lambda *_, **__: pytest.fail("no device is needed"))
        assert main(["gpu", "--out", str(folder), "--stages", str(REPORT)]) == 0
        assert capsys.readouterr().out == told

    def test_nothing_is_left_to_resume(self, proof, capsys):
        folder, *_ = proof
        before = (folder / "proof.json").read_bytes()
        assert main(command(folder, "--resume", "--stages", "0-7")) == 0
        assert (folder / "proof.json").read_bytes() == before
        assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_a_proof_keeps_to_its_minutes_and_says_what_it_left_out(tmp_path, capsys):
    minutes, start = 0.1, time.monotonic()
    with short_calibrations():
        code = main(command(tmp_path / "proof", "--minutes", str(minutes)))
    told, progress = capsys.readouterr()
    assert code == 0, progress
    report = json.loads((tmp_path / "proof" / "report.json").read_text())
    assert faults("gpu", report) == []
    assert report["left_out"]
    assert report["failures"] == []
    assert "Left out" in told
    assert "no time: about" in told
    assert time.monotonic() - start < 60 * minutes + 60  # a piece that has begun ends, on a machine that others use
