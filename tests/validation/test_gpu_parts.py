"""The parts of a proof, each alone: its record, its time, its models, what it watches and what it refuses."""

import argparse
import json
import threading
import types
import zipfile

import pytest
import torch
from trace_examples import two_devices

from engine.device import EmulatedDevice
from traces.errors import InputError
from validation.cli import main
from validation.gpu import record as records
from validation.gpu.command import stage_numbers
from validation.gpu.piece import Piece, Stage
from validation.gpu.proof import Proof, StagePace, TimeBudget, failures, stage_shares_s
from validation.gpu.random_models import FAMILIES, described_config, full_config, random_model, tiny_model
from validation.gpu.record import NotReadyError, ProofRecord
from validation.gpu.scale import LOCKED, scale_named
from validation.gpu.stages import REPORT, REPORT_WEIGHT, STAGES, logits, peers, running, times, tokens, watched, whole
from validation.gpu.stages.logits import TeacherForcing
from validation.gpu.workbench import Workbench, available_host_bytes, weight_bytes

SETTINGS = {"scale": "tiny", "origin": "emulated device", "version": "1"}
SCALES = ("full", "small", "few", "tiny")


@pytest.fixture
def record(tmp_path):
    return ProofRecord.begin(tmp_path / "proof", SETTINGS, resume=False)


@pytest.fixture
def bench(record):
    return Workbench("emulated", scale_named("tiny"), record)


class Clock:
    """Passes only when told."""

    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s


def staged(name, pieces, weight=1.0):
    return Stage(name, name, weight, lambda bench: iter(pieces))


def proved(bench, stages, budget=None, told=None):
    lines = [] if told is None else told
    Proof(bench, list(enumerate(stages)), budget or TimeBudget(None), lines.append).run()
    return lines


class TestTheRecord:
    def test_what_is_noted_is_on_the_disk_at_once(self, record):
        record.note("facts", "machine", {"result": {"a": 1}})
        again = ProofRecord.read(record.folder)
        assert again == record
        assert again.results("facts") == {"machine": {"a": 1}}

    def test_a_folder_is_gone_on_with_only_if_told(self, record):
        record.note("facts", "machine", {"result": {}})
        assert ProofRecord.begin(record.folder, SETTINGS, resume=True).stages == record.stages
        with pytest.raises(InputError, match="give --resume"):
            ProofRecord.begin(record.folder, SETTINGS, resume=False)

    def test_a_folder_of_other_settings_is_refused_in_one_line(self, record):
        record.note("facts", "machine", {"result": {}})
        with pytest.raises(InputError, match=r"begun with scale 'tiny', not 'full'; give a new folder") as refused:
            ProofRecord.begin(record.folder, {**SETTINGS, "scale": "full"}, resume=True)
        assert "\n" not in str(refused.value)

    def test_resume_of_an_empty_folder_begins(self, tmp_path):
        assert ProofRecord.begin(tmp_path / "new", SETTINGS, resume=True).stages == {}

    def test_another_proof_json_is_refused(self, record):
        (record.folder / "proof.json").write_text("{}")
        with pytest.raises(InputError, match="is not a proof"):
            ProofRecord.read(record.folder)

    def test_the_archive_keeps_files_by_name_and_replaces_them(self, record):
        for name, text in (("a.0.txt", "old"), ("b.txt", "other"), ("a.1.txt", "one"), ("a.0.txt", "new")):
            assert record.keep(name, lambda path, text=text: path.write_text(text))
        with record.unpacked("a.") as files:
            assert {file.name: file.read_text() for file in files} == {"a.0.txt": "new", "a.1.txt": "one"}
        assert sorted(record.kept()) == ["a.0.txt", "a.1.txt", "b.txt"]
        assert [file.name for file in record.folder.iterdir()] == ["traces.zip"]

    def test_what_would_make_the_archive_too_large_is_not_kept(self, record, monkeypatch):
        assert record.keep("small", lambda path: path.write_bytes(b"x"))
        monkeypatch.setattr(records, "LARGEST_FILE_BYTES", record.archive.stat().st_size + 50)
        assert not record.keep("large", lambda path: path.write_bytes(bytes(range(256)) * 40))
        assert record.kept() == ["small"]
        assert zipfile.ZipFile(record.archive).testzip() is None

    def test_a_failure_to_write_leaves_the_archive_as_it_was(self, record):
        record.keep("a", lambda path: path.write_text("a"))

        def failing(path):
            path.write_text("half")
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            record.keep("b", failing)
        assert record.kept() == ["a"]
        assert [file.name for file in record.folder.iterdir()] == ["traces.zip"]


class TestTheOrderOfWork:
    def test_a_piece_that_fails_is_written_down_and_the_next_goes_on(self, bench):
        def failing():
            raise ValueError("no\nsuch thing")

        lines = proved(bench, [staged("a", [Piece("bad", 1, failing), Piece("good", 1, lambda: {"x": 1})])])
        outcome = bench.record.outcome("a", "bad")
        assert outcome["error"] == "ValueError: no"
        assert "failing" in "\n".join(outcome["traceback"])
        assert bench.record.results("a") == {"good": {"x": 1}}
        assert failures(bench.record.stages) == ["a: bad: ValueError: no"]
        assert any("FAILED" in line for line in lines)

    def test_what_must_be_so_and_is_not_is_a_failure(self, bench):
        proved(bench, [staged("a", [Piece("x", 1, lambda: {"met": False}), Piece("y", 1, lambda: {"met": True})])])
        assert [one.partition(":")[0] for one in failures(bench.record.stages)] == ["a"]
        assert len(failures(bench.record.stages)) == 1

    def test_what_has_a_result_is_not_done_again_but_what_failed_is(self, bench):
        done = []

        def work(name):
            done.append(name)
            if len(done) == 1:
                raise InputError("not yet")
            return {}

        stage = staged("a", [Piece(name, 1, lambda name=name: work(name)) for name in "xy"])
        proved(bench, [stage])
        proved(bench, [stage])
        assert done == ["x", "y", "x"]
        assert failures(bench.record.stages) == []

    def test_what_is_not_ready_is_left_out_and_no_failure(self, bench):
        def waiting():
            raise NotReadyError("first things first")

        proved(bench, [staged("a", [Piece("x", 1, waiting)])])
        assert bench.record.outcome("a", "x")["left_out"] == "first things first"
        assert failures(bench.record.stages) == []

    def test_ctrl_c_ends_it_and_keeps_what_is_done(self, bench):
        def interrupted():
            raise KeyboardInterrupt

        stage = staged("a", [Piece("x", 1, dict), Piece("y", 1, interrupted)])
        with pytest.raises(KeyboardInterrupt):
            proved(bench, [stage])
        assert list(ProofRecord.read(bench.record.folder).stages["a"]) == ["x"]


class TestTime:
    def test_each_stage_gets_its_part_and_some_is_kept_for_the_report(self):
        budget = TimeBudget(1.0, Clock())
        shares = stage_shares_s([staged("a", [], 1), staged("b", [], 3)], budget)
        assert shares == [60 / (4 + REPORT_WEIGHT), 180 / (4 + REPORT_WEIGHT)]

    def test_without_a_limit_everything_is_done(self, bench):
        proved(bench, [staged("a", [Piece(str(n), 1e9, dict) for n in range(3)])])
        assert len(bench.record.results("a")) == 3

    def test_pieces_that_do_not_fit_are_left_out_and_the_first_ones_are_done(self, bench):
        clock = Clock()
        budget = TimeBudget((10 + REPORT_WEIGHT) / 60, clock)  # ten seconds for a stage of weight ten

        def work():
            clock.now_s += 3
            return {}

        pieces = [Piece(str(n), 3.0, work) for n in range(5)]
        proved(bench, [staged("a", pieces, 10.0)], budget)
        assert list(bench.record.results("a")) == ["0", "1", "2"]
        assert bench.record.outcome("a", "3")["left_out"] == "no time: about 3.0 s needed, 1.0 s left"

    def test_time_that_a_stage_leaves_goes_to_the_next(self, bench):
        """Of 12 s the second stage gets 5 at first, and 12 once the first one has left its own."""
        clock = Clock()

        def work():
            clock.now_s += 3
            return {}

        budget = TimeBudget((12 + REPORT_WEIGHT) / 60, clock)
        later = staged("b", [Piece(str(n), 3.0, work) for n in range(4)], 5.0)
        assert stage_shares_s([staged("a", [], 7.0), later], budget)[1] == pytest.approx(5)
        proved(bench, [staged("a", [Piece("x", 1.0, dict)], 7.0), later], budget)
        assert list(bench.record.results("b")) == ["0", "1"], "5 parts in 5 and 6 for the report of 18 s"

    def test_the_first_piece_of_a_stage_may_take_more_than_its_part_but_not_more_than_there_is(self, bench):
        budget = TimeBudget(1.0, Clock())
        stages = [staged("a", [Piece("x", 50.0, dict)], 0.01), staged("b", [Piece("x", 61.0, dict)])]
        proved(bench, stages, budget)
        assert "result" in bench.record.outcome("a", "x")
        assert "left_out" in bench.record.outcome("b", "x")

    def test_a_failure_is_not_forgotten_for_want_of_time(self, bench):
        def fails():
            raise InputError("broken")

        stage = staged("a", [Piece("x", 100.0, fails)])
        proved(bench, [stage])
        proved(bench, [stage], TimeBudget(0.1, Clock()))
        assert failures(bench.record.stages) == ["a: x: broken"]

    def test_what_was_left_out_is_done_by_a_later_call(self, bench):
        stage = staged("a", [Piece("x", 100.0, dict)])
        proved(bench, [stage], TimeBudget(0.1, Clock()))
        assert "left_out" in bench.record.outcome("a", "x")
        proved(bench, [stage])
        assert bench.record.outcome("a", "x")["result"] == {}

    def test_the_pace_follows_what_pieces_took(self):
        pace, piece = StagePace(), Piece("x", 2.0, dict)
        assert pace.expected_s(piece) == 2.0
        for _ in range(20):
            pace.learn(piece, 6.0)
        assert pace.expected_s(piece) == pytest.approx(2.0 * (12 + 2) / (4 + 2), rel=1e-3)
        small = StagePace()
        small.learn(Piece("quick", 1.0, dict), 3.0)
        assert small.expected_s(Piece("long", 60.0, dict)) < 65, "a small piece says little about a large one"


class TestScales:
    @pytest.mark.parametrize("name", SCALES)
    def test_a_scale_runs_every_schedule_of_each_model(self, name, record):
        bench = Workbench("emulated", scale_named(name), record)
        for model in bench.scale.models:
            cases = bench.cases(model)
            assert list(dict.fromkeys(case.schedule for case in cases)) == bench.scale.order
            assert cases[0].schedule == "cgopipe"
            for case in cases:
                case.policy.check_places(case.chosen_schedule)
                assert case.policy.pin_weights == LOCKED["pin_weights"]

    @pytest.mark.parametrize("name", SCALES)
    def test_every_piece_has_a_name_of_its_own_and_a_guess(self, name, record):
        bench = Workbench("emulated", scale_named(name), record)
        for stage in STAGES:
            pieces = list(stage.pieces(bench))
            assert pieces
            assert len({piece.name for piece in pieces}) == len(pieces)
            assert all(piece.seconds > 0 for piece in pieces)

    def test_the_models_are_those_that_are_too_large_for_their_cap(self, record):
        bench = Workbench("emulated", scale_named("full"), record)
        mixtral, qwen = bench.described("m", 32), bench.described("q", 48)
        assert mixtral.total_params == pytest.approx(46.7e9, rel=0.01)
        assert qwen.total_params == pytest.approx(30.5e9, rel=0.01)
        assert bench.scale.requests == 256
        assert (bench.scale.whole.layers, bench.scale.whole.device_bytes) == (32, 24 * 10**9)
        for name, spec in bench.scale.models.items():
            assert weight_bytes(bench.described(name)) > spec.device_bytes, "it must be offloaded"
            assert weight_bytes(bench.described(name, spec.resident_layers)) < spec.device_bytes

    def test_an_unknown_scale_is_refused(self):
        with pytest.raises(InputError, match="'huge' is not known; give one of full, small, few, tiny"):
            scale_named("huge")


class TestModels:
    def test_a_random_model_is_what_the_simulator_is_told(self, bench):
        model = bench.model("m")
        assert sum(one.nbytes for one in model.parameters()) == weight_bytes(bench.described("m"))
        assert {one.dtype for one in model.parameters()} == {torch.bfloat16}
        assert bench.model("m") is model

    def test_its_weights_are_the_same_each_time_and_its_activations_keep_their_size(self):
        config = full_config("mixtral-8x7b", 2, scale_named("tiny").models["m"].sizes)
        one, other = (random_model(config, torch.float32, torch.device("cpu")) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
        with torch.inference_mode():
            logits_ = one(torch.arange(1, 9)[None]).logits
        assert 0.3 < logits_.std() < 3
        assert torch.isfinite(logits_).all()

    def test_described_without_making_it(self):
        config = full_config("qwen3-30b-a3b", 3, {})
        assert described_config(config, torch.bfloat16, "q").num_layers == 3

    @pytest.mark.parametrize("family", scale_named("full").families)
    def test_each_family_has_a_tiny_model(self, family):
        assert FAMILIES.exists()
        model = tiny_model(family)
        assert model.config.model_type == family
        assert {one.dtype for one in model.parameters()} == {torch.float32}

    def test_eight_families_are_held_against_plain_generate(self):
        assert len(set(scale_named("full").families)) == len(set(scale_named("small").families)) == 8


class TestPieces:
    def test_a_family_that_fails_without_us_is_said_and_is_no_failure(self, bench, monkeypatch):
        def fails(*_):
            raise RuntimeError("(*bias): last dimension must be contiguous\nand more")

        monkeypatch.setattr(tokens, "_plain_tokens", fails)
        found = tokens.equal_tokens(bench, "mixtral", "cgopipe")
        assert found == {
            "said": "plain generate() itself fails on this device: (*bias): last dimension must be contiguous"
        }

    def test_tokens_that_are_not_equal_are_told(self, bench, monkeypatch):
        right = tokens.tokens_by_schedule

        def wrong(*args):
            rows = right(*args)
            return [[*rows[0][:-1], (rows[0][-1] + 1) % 128], *rows[1:]]

        monkeypatch.setattr(tokens, "tokens_by_schedule", wrong)
        found = tokens.equal_tokens(bench, "mixtral", "cgopipe")
        assert (found["met"], found["equal"], found["requests"]) == (False, 6, 7)

    def test_teacher_forcing_tells_the_same_tokens_whatever_the_scores(self):
        ids, teachers = torch.tensor([[3, 4], [5, 6]]), [TeacherForcing() for _ in range(2)]
        scores = [torch.randn(2, 16), torch.randn(2, 16)]
        told = [teacher(ids, one).argmax(-1).tolist() for teacher, one in zip(teachers, scores, strict=True)]
        assert told[0] == told[1]
        assert torch.equal(teachers[0].seen[3, 4], scores[0][0])

    @pytest.mark.parametrize(("apart", "met"), [(0.0, True), (0.2, False)])
    def test_parity_has_a_bar(self, bench, apart, met):
        plain = {(n,): torch.randn(64) for n in range(8)}
        noisy = {text: row + apart * torch.randn(64) for text, row in plain.items()}
        found = logits.held_against(bench, plain, lambda: noisy)
        assert found["met"] == met
        assert found["mean_difference"] == pytest.approx(apart * (2 / torch.pi) ** 0.5, rel=0.2, abs=1e-9)

    def test_logits_of_other_texts_are_told(self, bench):
        found = logits.held_against(bench, {(1,): torch.randn(4)}, lambda: {(2,): torch.randn(4)})
        assert found["met"] is False

    def test_no_run_without_a_prediction(self, bench):
        with pytest.raises(NotReadyError, match="is not predicted yet"):
            running.run_case(bench, bench.cases("m")[0], 0)
        with pytest.raises(NotReadyError, match="is not predicted yet"):
            whole.run_whole(bench)

    def test_no_prediction_without_a_calibration(self, bench):
        with pytest.raises(NotReadyError, match=r"stage 3 \(calibration\) comes first"):
            running.predict_cases(bench, "m")

    def test_what_does_not_fit_is_said_and_not_run(self, bench):
        case = bench.cases("m")[0]
        said = {case.name: {"shortages": ["device memory is 5 bytes short"]}}
        bench.record.note("runs", "predictions, m", {"result": said})
        assert running.run_case(bench, case, 0) == {"said": "does not fit: device memory is 5 bytes short"}

    def test_a_whole_model_has_as_many_layers_as_the_host_holds(self, record, monkeypatch):
        bench = Workbench("emulated", scale_named("full"), record)
        for gigabytes, layers in ((2000, 32), (64, 18), (1, 1)):
            monkeypatch.setattr(whole, "available_host_bytes", lambda gigabytes=gigabytes: gigabytes * 10**9)
            assert whole.layers_that_fit(bench) == layers
        assert weight_bytes(bench.described("m", 18)) <= 0.85 * 64e9
        assert weight_bytes(bench.described("m", 19)) > 0.85 * 64e9

    def test_a_peer_that_does_not_fit_is_said(self, bench):
        found = peers.all_resident(bench, "m", None, 1000)
        assert "does not fit" in found["said"]

    def test_a_peer_takes_fewer_requests_at_a_time_until_they_fit(self, bench, monkeypatch):
        tried = []

        def seconds(bench, model, prompts):
            tried.append(len(prompts))
            if len(prompts) > 1:
                raise torch.OutOfMemoryError("full")
            return 2.0

        monkeypatch.setattr(peers, "seconds_of_a_batch", seconds)
        found = peers.generate_in_batches(bench, tiny_model("mixtral"))
        assert tried == [4, 2, 1]
        assert (found["batch_size"], found["tokens_per_s"]) == (1, 4 / 2.0)

    def test_times_are_compared_task_by_task(self):
        trace = two_devices()
        found = times.compared_times(trace, trace)
        assert all(one["median_apart_s"] == 0 and one["ours_s"] == one["profiler_s"] for one in found["lanes"].values())


class TestTheWatchedProgram:
    def test_it_sees_the_work_of_all_threads(self, monkeypatch, capsys):
        """On any build: the detector itself needs no device, only a stream to name."""
        monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: types.SimpleNamespace(cuda_stream=1))
        monkeypatch.setattr(tokens, "WATCHED_SCHEDULES", ("flexgen",))
        monkeypatch.setattr(threading.Thread, "run", threading.Thread.run)
        assert watched.main(device="emulated") == 0
        assert json.loads(capsys.readouterr().out)["launches"] > 1000

    def test_its_failure_is_one_of_the_proof(self, bench, monkeypatch):
        monkeypatch.setattr(Workbench, "is_cuda", True)
        monkeypatch.setattr(tokens.sys, "executable", "/bin/false")
        found = tokens.watched_program(bench)
        assert (found["met"], found["exit_code"]) == (False, 1)


class TestTheCommand:
    @pytest.mark.parametrize(
        ("text", "numbers"), [("0-3", [0, 1, 2, 3]), ("8", [8]), ("4-8, 0", [0, 4, 5, 6, 7, 8]), ("2,2-3", [2, 3])]
    )
    def test_stages_are_numbers_and_ranges(self, text, numbers):
        assert stage_numbers(text) == numbers

    @pytest.mark.parametrize("text", ["", "9", "3-1", "a", "1-", "-1"])
    def test_other_stages_are_refused(self, text):
        with pytest.raises(argparse.ArgumentTypeError, match=f"give stages from 0 to {REPORT}"):
            stage_numbers(text)

    @pytest.mark.parametrize("line", ["--minutes 0", "--minutes x", "--scale huge", "--device abacus", "--stages 9"])
    def test_what_cannot_be_is_refused_in_one_line_and_nothing_is_made(self, line, tmp_path, capsys):
        assert main(["gpu", "--out", str(tmp_path / "proof"), *line.split()]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
        assert not (tmp_path / "proof").exists()

    @pytest.mark.parametrize("scale", SCALES)
    def test_a_dry_run_tells_stages_bytes_and_minutes_and_makes_nothing(self, scale, tmp_path, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "80")
        out = tmp_path / "proof"
        line = ["gpu", "--out", str(out), "--dry-run", "--scale", scale, "--minutes", "8", "--device", "emulated"]
        assert main(line) == 0
        told = capsys.readouterr().out
        assert not out.exists()
        assert max(map(len, told.splitlines())) <= 80
        for number, stage in enumerate(STAGES):
            assert f"{number} {stage.name}" in told
        assert "emulated device" in told

    def test_a_report_of_nothing_is_refused(self, tmp_path, capsys):
        assert main(["gpu", "--out", str(tmp_path), "--stages", "8"]) == 2
        assert "cannot be read" in capsys.readouterr().err

    def test_the_exit_code_says_that_something_failed(self, tmp_path, monkeypatch, capsys):
        def failing(bench):
            raise RuntimeError("broken")

        monkeypatch.setattr("validation.gpu.stages.facts.machine_facts", failing)
        line = ["gpu", "--out", str(tmp_path / "p"), "--scale", "tiny", "--device", "emulated", "--stages", "0,8"]
        assert main(line) == 1
        assert "- facts: machine: RuntimeError: broken" in capsys.readouterr().out


def test_the_host_s_free_memory_is_some_of_it():
    assert 0 < available_host_bytes() < 1 << 50


def test_an_emulated_device_says_so(bench):
    assert bench.origin == "emulated device"
    assert not bench.is_real
    with bench.device(1 << 20) as device:
        assert isinstance(device, EmulatedDevice)
