"""One run on several devices, a process each: the same tokens, one trace, one account; and a run that loses a rank."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from engine_models import reference

import engine
from engine.cli import main
from engine.device import DeviceAsked, EmulatedDevice
from engine.generation import ModelAsked, find_tokenizer, load_model
from engine.generation.ranks import merged_stats, merged_trace
from engine.generation.trace import Stats
from engine.running.demo import make_model
from sim.schedule import OUT_PROJ_SUM, Op
from traces.errors import InputError
from traces.trace import MEMORY, NONE, Counter, Span, Trace
from validation.replay import replay_trace

NEW = 4
TEXTS = ["A mixture", "of", "experts runs", "here", "and now", "in", "pages of weights", "!"]
SOON_S = 30.0
"""Within seconds, on a machine that has much else to do."""

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    make_model(path, hidden_size=32, num_layers=2)
    return path


@pytest.fixture(scope="module")
def ran(folder):
    """A run of two devices, with what its callbacks were told."""
    told, batches = [], []
    asked = DeviceAsked("emulated", {"h2d_bytes_per_s": 1e9, "d2h_bytes_per_s": 1e9, "memory_bytes": 2**28})
    policy = {"micro_batch_size": 2, "num_micro_batches": 2}
    options = {"max_new_tokens": NEW, "device": asked, "num_devices": 2}
    model = ModelAsked(folder, "float32")
    result = engine.run(model, TEXTS, "cgopipe", policy, progress=told.append, on_batch=batches.append, **options)
    return result, told, batches


class TestARunOfTwo:
    def test_tokens_are_those_of_one_device(self, folder, ran):
        tokenizer, model = find_tokenizer(folder), load_model(folder)
        expected = reference(model, [tokenizer(text)["input_ids"] for text in TEXTS], 2, NEW)
        assert ran[0].sequences == expected
        assert ran[0].texts == tokenizer.batch_decode(expected, skip_special_tokens=True)

    def test_callbacks_are_told_here_of_every_token_and_batch_once(self, ran):
        result, told, batches = ran
        assert sum(told) == len(TEXTS) * NEW
        assert [one.first for one in batches] == [0, 4]
        assert [sequence for one in batches for sequence in one.sequences] == result.sequences

    def test_one_trace_holds_the_lanes_of_both_and_their_sums_once(self, ran):
        trace = ran[0].trace
        lanes = trace.lanes()
        assert {rank for _, rank in lanes} == {0, 1}
        assert [lane for lane in lanes if lane[0] == "NET"] == [("NET", 0)]
        sums = [span for span in trace.spans if span.op == Op.ALL_REDUCE]
        assert len(sums) == 2 * 2 * 2 * NEW  # twice a layer, for each micro-batch and step
        assert trace.start_ns == 0
        assert {counter.rank for counter in trace.counters} == {0, 1, NONE}

    def test_no_rank_goes_on_before_the_sum_began(self, ran):
        spans = ran[0].trace.spans
        sums = [one for one in spans if one.op == Op.ALL_REDUCE and one.page == OUT_PROJ_SUM]
        began = {(one.step, one.layer, one.micro_batch): one.start_ns for one in sums}
        behind = [one for one in spans if one.op == Op.EXPERTS]
        assert {one.rank for one in behind} == {0, 1}
        assert all(one.start_ns >= began[one.step, one.layer, one.micro_batch] for one in behind)

    def test_its_trace_is_replayed_with_all_ranks(self, ran):
        replayed = replay_trace(ran[0].trace)
        assert replayed.run.num_ranks == 2
        assert replayed.order_check.tasks == len(ran[0].trace.spans)
        assert replayed.order_check.replayed_s <= replayed.order_check.measured_s

    def test_the_account_names_what_each_rank_held_and_did(self, ran):
        stats = ran[0].stats
        assert {"GPU", "GPU:1", "H2D", "H2D:1", "NET"} <= stats.busy_s.keys()
        assert "NET:1" not in stats.busy_s
        assert stats.peak_bytes["device:1"] == pytest.approx(stats.peak_bytes["device"], rel=0.05)
        assert stats.generated_tokens == len(TEXTS) * NEW


def host(time_ns, held):
    return Counter(MEMORY, time_ns, {"host": held, "pinned": 1.0})


def span(id_, op, rank, start_ns, end_ns, cause=NONE):
    lane = "NET" if op == "AllReduce" else "GPU"
    return Span(id_, op, lane, rank, 1, 0, 0, 0, start_ns, end_ns, 8, 0, "", "", cause)


class TestMerging:
    @pytest.fixture
    def traces(self):
        """Rank 1 begins 100 ns later, comes to the sum last, and is the first to have it."""
        about = {"origin": "emulated device"}
        held = [[host(0, 5.0), Counter(MEMORY, 0, {"device": 3.0}, rank)] for rank in (0, 1)]
        held[1].append(host(200, 7.0))
        one = [span(1, "OutProj", 0, 0, 50), span(3, "AllReduce", 0, 50, 420, 1), span(4, "Experts", 0, 420, 500, 3)]
        two = [span(2, "OutProj", 1, 0, 200), span(3, "AllReduce", 0, 200, 310, 2), span(5, "Experts", 1, 310, 350, 3)]
        return [
            Trace({**about, "began_ns": 1000, "rank": 0}, one, held[0]),
            Trace({**about, "began_ns": 1100, "rank": 1, "clock_shift_ns": 3}, two, held[1]),
        ]

    def test_a_sum_lasts_from_the_last_arrival_until_the_first_has_it(self, traces):
        merged = merged_trace(traces)
        (sum_,) = (one for one in merged.spans if one.op == "AllReduce")
        assert (sum_.start_ns, sum_.end_ns, sum_.rank, sum_.cause) == (300, 410, 0, 2)

    def test_times_are_of_one_clock(self, traces):
        merged = merged_trace(traces)
        assert [(one.id, one.start_ns) for one in merged.spans] == [(1, 0), (2, 100), (3, 300), (4, 420), (5, 410)]
        assert merged.metadata["began_ns"] == 1000
        assert merged.metadata["clock_shift_ns"] == 3
        assert "rank" not in merged.metadata

    def test_the_host_holds_what_all_hold_on_it(self, traces):
        counters = merged_trace(traces).counters
        host = [(one.time_ns, one.values["host"]) for one in counters if one.rank == NONE]
        assert host == [(0, 5.0), (100, 10.0), (300, 12.0)]
        assert sorted(one.rank for one in counters if one.rank != NONE) == [0, 1]

    def test_a_task_of_one_rank_that_two_have_done_is_a_mistake(self, traces):
        with pytest.raises(RuntimeError, match="ranks 0 and 0 have both done task 1"):
            merged_trace([traces[0], traces[0]])

    def test_the_run_ends_when_its_last_rank_does(self):
        one = Stats(1, 8, 1.0, 2.0, {"GPU": 1.0, "NET": 0.5}, {"device": 4, "host": 5})
        two = Stats(1, 8, 1.5, 2.0, {"GPU": 2.0, "NET": 0.2}, {"device": 6, "host": 5})
        both = merged_stats([one, two])
        assert (both.generated_tokens, both.prefill_s, both.decode_s) == (8, 1.5, 2.0)
        assert both.busy_s == {"GPU": 1.0, "GPU:1": 2.0, "NET": 0.2}
        assert both.peak_bytes == {"device": 4, "device:1": 6, "host": 10}


class TestRefusals:
    def test_an_open_device_belongs_to_one_process(self, folder):
        with (
            EmulatedDevice(None, None, 2**28) as device,
            pytest.raises(InputError, match="device: emulated is open here"),
        ):
            engine.run(folder, TEXTS, device=device, num_devices=2)

    def test_a_schedule_that_divides_requests(self, folder):
        with pytest.raises(InputError, match="zero: its 2 devices divide requests"):
            engine.run(folder, TEXTS, "zero", device="emulated", num_devices=2)

    def test_no_device_at_all(self, folder):
        with pytest.raises(InputError, match="num_devices: 0 is not allowed"):
            engine.run(folder, TEXTS, device="emulated", num_devices=0)

    def test_what_cannot_be_sent_is_named(self, folder):
        with pytest.raises(InputError, match="stopping_criteria: it cannot be sent"):
            engine.run(folder, TEXTS, device="emulated", num_devices=2, stopping_criteria=[lambda ids, scores: False])

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            (["--devices", "2", "--stream"], "--stream runs on one device, and 2 are asked for"),
            (["--devices", "0"], "--devices"),
            (["--devices", "2", "--plan-for", "rtx4090"], "--plan-for rtx4090: it has 1 devices, and the run 2"),
        ],
    )
    def test_options_that_make_no_sense(self, command, capsys, options, told):
        given = command(*options)
        if "--plan-for" in options:
            at = given.index("--micro-batch-size")
            given[at : at + 4] = []
        assert main(given) == 2
        assert told in capsys.readouterr().err

    def test_as_many_as_torchrun_has_started(self, command, capsys, monkeypatch):
        for name in ("RANK", "LOCAL_RANK"):
            monkeypatch.setenv(name, "0")
        for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            monkeypatch.setenv(name, "2")
        assert main(command("--devices", "3")) == 2
        assert "--devices 3: torchrun has started 2 ranks" in capsys.readouterr().err


@pytest.fixture
def command(folder, tmp_path):
    """The arguments of a run of so many requests."""

    def build(*extra, output="results.jsonl", count=8, new=NEW):
        lines = [json.dumps({"prompt": f"{TEXTS[i % len(TEXTS)]} {i}"}) + "\n" for i in range(count)]
        (tmp_path / "in.jsonl").write_text("".join(lines), encoding="utf-8")
        paths = ["--model", str(folder), "--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / output)]
        sizes = ["--micro-batch-size", "2", "--num-micro-batches", "2", "--max-new-tokens", str(new)]
        return ["run", *paths, *sizes, "--device", "emulated", "--dtype", "float32", *extra]

    return build


@pytest.fixture
def started():
    """Starts a program in a session of its own; whatever it leaves is killed."""
    running = []

    def start(*arguments):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        one = subprocess.Popen([sys.executable, *arguments], env=environment, start_new_session=True, **pipes)
        running.append(one)
        return one

    yield start
    for one in running:
        if one.poll() is None:
            os.killpg(one.pid, signal.SIGKILL)
        one.communicate()


def ranks_of(process):
    """The processes of its ranks, in their order."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(one) for one in children if "spawn_main" in Path(f"/proc/{one}/cmdline").read_text()]


def wait_for(condition):
    until = time.monotonic() + 3 * SOON_S
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def lines_of(path):
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


@pytest.mark.exhaustive
class TestLosses:
    """Real processes: these take a minute."""

    @pytest.mark.parametrize("victim", [0, 1])
    def test_a_killed_rank_ends_the_run_by_name_and_it_can_be_gone_on_with(self, started, command, tmp_path, victim):
        arguments = command("--devices", "2", count=24, new=16)
        running = started("-m", "engine", *arguments)
        wait_for(lambda: len(lines_of(tmp_path / "results.jsonl")) >= 4)
        ranks = ranks_of(running)
        os.kill(ranks[victim], signal.SIGKILL)
        killed_s = time.monotonic()
        _, told = running.communicate(timeout=SOON_S)
        assert time.monotonic() - killed_s < SOON_S
        assert running.returncode == 2
        assert f"error: rank {victim} was killed (SIGKILL)" in told
        assert "Traceback" not in told
        assert not [one for one in ranks if Path(f"/proc/{one}").exists()]
        kept = lines_of(tmp_path / "results.jsonl")
        assert 4 <= len(kept) < 24
        again = started("-m", "engine", *arguments, "--resume")
        again.communicate(timeout=4 * SOON_S)
        assert again.returncode == 0
        assert main(command(output="one.jsonl", count=24, new=16)) == 0
        assert lines_of(tmp_path / "results.jsonl") == lines_of(tmp_path / "one.jsonl")

    def test_ctrl_c_reaches_all(self, started, command, tmp_path):
        running = started("-m", "engine", *command("--devices", "2", count=24, new=16))
        wait_for(lambda: len(lines_of(tmp_path / "results.jsonl")) >= 4)
        ranks = ranks_of(running)
        os.killpg(running.pid, signal.SIGINT)
        _, told = running.communicate(timeout=SOON_S)
        assert running.returncode == 130
        assert "--resume goes on" in told
        assert not [one for one in ranks if Path(f"/proc/{one}").exists()]

    def test_memory_that_one_rank_lacks(self, started, command):
        running = started("-m", "engine", *command("--devices", "2", "--device-memory-gb", "0.00001"))
        _, told = running.communicate(timeout=2 * SOON_S)
        assert running.returncode == 2
        assert "bytes of device memory" in told
        assert "Traceback" not in told

    def test_torchrun_starts_the_same_ranks(self, started, command, tmp_path):
        running = started("-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "engine", *command())
        said, told = running.communicate(timeout=4 * SOON_S)
        assert running.returncode == 0, told
        assert (said, told.count("policy: ")) == ("", 1)
        assert main(command(output="one.jsonl")) == 0
        assert lines_of(tmp_path / "results.jsonl") == lines_of(tmp_path / "one.jsonl")

    def test_a_rank_that_torchrun_loses(self, started, command, tmp_path):
        launch = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "engine")
        running = started(*launch, *command(count=24, new=16))
        wait_for(lambda: len(lines_of(tmp_path / "results.jsonl")) >= 4)
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        ranks = {}
        for one in children:
            environment = Path(f"/proc/{one}/environ").read_bytes().split(b"\0")
            ranks |= {int(name[5:]): int(one) for name in environment if name.startswith(b"RANK=")}
        os.kill(ranks[1], signal.SIGKILL)
        _, told = running.communicate(timeout=2 * SOON_S)
        assert running.returncode == 1
        assert "rank      : 1" in told
        assert "SIGKILL" in told
        assert len(lines_of(tmp_path / "results.jsonl")) >= 4
