"""`python -m sim sweep`: its rows, whoever computes them; going on after an interruption; its maps."""

import csv
import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sim.cli import main
from sim.comparison import Asked, compare
from sim.hrm import search_policies
from sim.planning import MONEY, Prices
from sim.problem import Hardware, Model, Problem, Routing, Workload
from sim.schedule import Place
from sim.sweep.axes import parse_axes
from sim.sweep.picture import draw_map
from sim.sweep.rows import read_rows
from sim.sweep.sweep import Base, Sweep, row_of
from traces.errors import InputError

ROOT = Path(__file__).resolve().parents[3]
SMALL = ("--schedules", "cgopipe,zero", "--gen-len", "4", "--micro-batch-size", "8", "--num-micro-batches", "2")
AXES = ("--axis", "hardware.link.h2d=8..16x2", "--axis", "prompt_len=64,128")


def sweep(*options, code=0):
    assert main(["sweep", *map(str, options)]) == code


def swept(texts, **base):
    asked = {"schedules": ("cgopipe",), "policy": {"micro_batch_size": 8, "num_micro_batches": 2}, "gen_len": 4, **base}
    given = Base("mixtral-8x7b", asked.pop("hardware", "gcp-t4"), "mtbench", **asked)
    return Sweep(given, parse_axes(texts, Hardware.load("gcp-t4")))


def only(texts, **base):
    """The problem of the one point that there is."""
    (point,) = swept(texts, **base).points()
    return point.problem


class TestPoints:
    def test_a_number_of_the_machine(self):
        assert only(["hardware.link.h2d=9"]).hardware.link.h2d_bytes_per_s == 9e9
        assert only(["hardware.link.h2d[GiB/s]=9"]).hardware.link.h2d_bytes_per_s == 9 * 2**30

    def test_a_factor_on_several(self):
        plain, scaled = (
            Hardware.load("gcp-t4"),
            only(["x:hardware.host.peak+hardware.host_memory.bandwidth*=3"]).hardware,
        )
        assert scaled.host.peak_flops_per_s == pytest.approx(3 * plain.host.peak_flops_per_s)
        assert scaled.host_memory.bandwidth_bytes_per_s == pytest.approx(3 * plain.host_memory.bandwidth_bytes_per_s)
        assert scaled.host_memory.capacity_bytes == plain.host_memory.capacity_bytes

    def test_a_factor_is_on_each_machines_own_number(self):
        rates = [
            point.problem.hardware.host_memory.capacity_bytes
            for point in swept(["hardware=gcp-t4,gcp-2xt4", "hardware.host_memory.capacity*=2"]).points()
        ]
        assert rates == [pytest.approx(384e9), pytest.approx(832e9)]

    def test_lengths_padding_model_and_workload(self):
        assert only(["prompt_len=99"]).workload.prompt_tokens == (99,)
        assert only(["gen_len=7"], gen_len=None).workload.gen_len == 7
        assert only(["padded=false"]).workload.padded is False
        assert only(["model=dbrx"]).model == Model.load("dbrx")
        assert only(["workload=helm-synthetic"], prompt_len=5).workload.name == "helm-synthetic"
        assert only(["gen_len=7"], prompt_len=5).workload.prompt_tokens == (5,)
        assert only(["routing=zipf:1.1"]).routing == only(["gen_len=7"], routing="zipf:1.1").routing == Routing(1.1)

    def test_the_policy(self):
        (point,) = swept(["policy.attention=gpu", "policy.kv_on_device=1"]).points()
        given = {"micro_batch_size": 8, "num_micro_batches": 2, "attention": "gpu", "kv_on_device": 1.0}
        assert point.asked == Asked({"": given})
        (sizes,) = swept(["policy.num_micro_batches=3"]).points()
        assert sizes.asked == Asked({}, 8, 3)

    def test_schedules_are_the_innermost_axis_unless_they_are_one_of_the_axes(self):
        both = ("cgopipe", "zero")
        assert [point.schedule for point in swept(["gen_len=4,5"], schedules=both).points()] == [*both, *both]
        named = swept(["schedule=zero,cgopipe", "gen_len=4,5"])
        assert [point.schedule for point in named.points()] == ["zero", "zero", "cgopipe", "cgopipe"]
        assert named.columns.count("schedule") == 1

    def test_a_row_is_what_compare_says(self):
        (point,) = swept(["gen_len=4"]).points()
        problem = Problem(Model.load("mixtral-8x7b"), Hardware.load("gcp-t4"), Workload.load("mtbench"))
        problem = Problem(problem.model, problem.hardware, problem.workload.with_(gen_len=4, padded=True))
        (outcome,) = compare(problem, ["cgopipe"], Asked({}, 8, 2), jobs=1)
        row, expected = row_of(point), outcome.to_dict()
        for name in ("throughput_tokens_per_s", "prefill_s", "decode_s", "bottleneck", "lower_bound_s", "feasible"):
            assert row[name] == expected[name]
        assert (row["micro_batch_size"], row["num_micro_batches"], row["attention"]) == (8, 2, "cpu")

    def test_without_sizes_each_point_is_planned(self):
        base = {"policy": {}, "schedules": ("zero",), "prompt_len": 2000}
        rows = [row_of(point) for point in swept(["hardware=gcp-t4,h100"], **base).points()]
        assert rows[0]["batch_size"] < rows[1]["batch_size"]

    def test_what_does_not_fit_or_cannot_be_is_a_row(self):
        lacking, impossible, planned = (
            row_of(next(swept(texts, **base).points()))
            for texts, base in (
                (["policy.micro_batch_size=4000"], {"policy": {"num_micro_batches": 9}}),
                (["policy.attention=gpu"], {"schedules": ("fastdecode",)}),
                (["hardware.host_memory.capacity=1"], {"policy": {}}),
            )
        )
        for row, reason in ((lacking, "device"), (impossible, "fastdecode"), (planned, "host")):
            assert row["feasible"] is False
            assert reason in row["reason"]
            assert row["throughput_tokens_per_s"] is None
        assert lacking["micro_batch_size"] == 4000

    def test_by_hrm_each_point_has_the_papers_policy(self):
        base = {"policy": {}, "by": "hrm", "schedules": ("cgopipe",), "gen_len": 32, "padded": False}
        rows = [row_of(point) for point in swept(["hardware=gcp-t4,gcp-l4"], **base).points()]
        assert [(row["micro_batch_size"], row["num_micro_batches"]) for row in rows] == [(164, 19), (324, 14)]
        assert rows[1]["throughput_tokens_per_s"] == pytest.approx(944.66, abs=5e-3)
        assert (rows[1]["attention"], rows[1]["bottleneck"], rows[1]["prefill_s"]) == ("cpu", "H2D", None)

    def test_by_hrm_attention_goes_to_the_device_where_that_is_faster(self):
        base = {"policy": {}, "by": "hrm", "schedules": ("cgopipe",), "gen_len": 32, "hardware": "h200"}
        (point,) = swept(["model=olmoe-1b-7b"], **base).points()
        places = [
            search_policies(point.problem.model, point.problem.hardware, point.problem.workload, attention=place)
            for place in Place
        ]
        row = row_of(point)
        assert row["attention"] == "gpu"
        assert row["throughput_tokens_per_s"] == places[1].tokens_per_s > places[0].tokens_per_s

    def test_by_hrm_leaves_nothing_of_the_policy_to_fix(self):
        with pytest.raises(InputError, match="--by hrm: searches the policy itself"):
            swept(["gen_len=4"], by="hrm")

    def test_the_digest_tells_sweeps_apart_and_knows_the_same(self):
        ways = [["gen_len=4"], ["gen_len=5"], ["hardware.link.h2d=9"], ["hardware.link.h2d[GiB/s]=9"]]
        digests = [swept(way).digest for way in ways]
        digests += [swept(["gen_len=4"], **one).digest for one in ({"exact": True}, {"padded": False})]
        digests += [swept(["gen_len=4"], routing="zipf:1").digest, swept(["routing=uniform,zipf:1"]).digest]
        assert len({*digests}) == len(digests)
        assert swept(["gen_len=4"]).digest == digests[0]

    @pytest.mark.parametrize(
        ("texts", "message"),
        [
            (["hardware.link.h2d=-1"], "--axis hardware.link.h2d: .* must be above 0"),
            (["model=mixtral-8x7"], "did you mean mixtral-8x7b"),
            (["hardware=gcp-t5"], "did you mean gcp-t4"),
            (["schedule=cgo"], "did you mean cgopipe"),
            (["routing=unifrom"], "did you mean uniform"),
            (["hardware=gcp-2xt4,gcp-t4", "hardware.network.latency*=2"], "network.latency"),
            (["throughput_tokens_per_s:gen_len=3"], "a column of the results"),
        ],
    )
    def test_values_that_cannot_be_used_are_refused_before_any_work(self, texts, message):
        machine = Hardware.load("gcp-2xt4")
        with pytest.raises(InputError, match=message):
            Sweep(Base("mixtral-8x7b", "gcp-t4", "mtbench", schedules=("zero",)), parse_axes(texts, machine))

    def test_a_part_of_a_policy_needs_the_sizes_too(self):
        with pytest.raises(InputError, match=r"policy\.attention: fix the sizes too"):
            swept(["policy.attention=cpu"], policy={"micro_batch_size": 4})


class TestRows:
    def test_csv_on_standard_output(self, capsys):
        sweep(*AXES, *SMALL, "--jobs", 1)
        rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
        assert [(row["hardware.link.h2d"], row["prompt_len"], row["schedule"]) for row in rows] == [
            (h2d, prompt, schedule)
            for h2d in ("8.0", "16.0")
            for prompt in ("64", "128")
            for schedule in ("cgopipe", "zero")
        ]
        assert all(float(row["throughput_tokens_per_s"]) > 0 for row in rows if row["feasible"] == "true")
        assert {row["schedule"] for row in rows if row["feasible"] == "true"} == {"cgopipe", "zero"}

    def test_csv_and_json_hold_the_same(self, tmp_path):
        for name in ("rows.csv", "rows.jsonl"):
            sweep(*AXES, *SMALL, "--jobs", 1, "--out", tmp_path / name)
        in_csv, in_json = (read_rows(tmp_path / name) for name in ("rows.csv", "rows.jsonl"))
        assert len(in_csv) == 8
        assert in_csv == [{**row, "reason": row["reason"] or None} for row in in_json]

    @pytest.mark.parametrize("options", [("--jobs", 2), ("--backend", "threading", "--jobs", 3)])
    def test_the_same_bytes_from_any_number_of_workers(self, options, tmp_path):
        sweep(*AXES, *SMALL, "--jobs", 1, "--out", tmp_path / "one.csv")
        sweep(*AXES, *SMALL, *options, "--out", tmp_path / "many.csv")
        assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "many.csv").read_bytes()

    def test_on_a_dask_cluster_that_is_there(self, tmp_path):
        distributed = pytest.importorskip("distributed")
        sweep(*AXES, *SMALL, "--jobs", 1, "--out", tmp_path / "here.csv")
        there = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
        with distributed.LocalCluster(**there) as cluster:
            options = ("--backend", "dask", "--cluster", cluster.scheduler_address)
            assert cluster.scheduler.transition_counter == 0
            sweep(*AXES, *SMALL, *options, "--out", tmp_path / "dask.csv")
            assert cluster.scheduler.transition_counter > 0  # it was the cluster that computed
        assert (tmp_path / "here.csv").read_bytes() == (tmp_path / "dask.csv").read_bytes()


class TestResume:
    @pytest.fixture(params=["rows.csv", "rows.jsonl"])
    def whole(self, request, tmp_path):
        path = tmp_path / request.param
        sweep(*AXES, *SMALL, "--jobs", 1, "--out", path)
        return path

    @pytest.mark.parametrize("kept", [0, 1, 700, -1, -40])
    def test_a_file_cut_anywhere_becomes_the_whole_file(self, whole, kept):
        content = whole.read_bytes()
        whole.write_bytes(content[:kept])
        sweep(*AXES, *SMALL, "--jobs", 1, "--out", whole, "--resume")
        assert whole.read_bytes() == content

    def test_only_missing_rows_are_computed(self, whole, monkeypatch):
        content = whole.read_bytes()
        whole.write_bytes(content[: content[:-1].rfind(b"\n") + 1])
        computed = []
        monkeypatch.setattr("sim.sweep.row_of", lambda point: computed.append(point) or row_of(point))
        sweep(*AXES, *SMALL, "--jobs", 1, "--out", whole, "--resume")
        assert len(computed) == 1
        assert whole.read_bytes() == content

    def test_a_file_that_is_there_is_not_overwritten(self, whole, capsys):
        before = whole.read_bytes()
        sweep(*AXES, *SMALL, "--out", whole, code=2)
        assert "exists already; give --resume" in capsys.readouterr().err
        assert whole.read_bytes() == before

    @pytest.mark.parametrize(
        "other", [("--exact",), ("--unpadded",), ("--model", "dbrx"), ("--axis", "padded=true")], ids=" ".join
    )
    def test_rows_of_another_sweep_are_refused_and_kept(self, other, whole, capsys):
        before = whole.read_bytes()
        sweep(*AXES, *SMALL, *other, "--out", whole, "--resume", code=2)
        assert "give another name" in capsys.readouterr().err
        assert whole.read_bytes() == before

    def test_rows_in_another_order_are_refused(self, whole, capsys):
        lines = whole.read_bytes().split(b"\n")
        lines[1], lines[2] = lines[2], lines[1]
        whole.write_bytes(b"\n".join(lines))
        sweep(*AXES, *SMALL, "--out", whole, "--resume", code=2)
        assert "is not row" in capsys.readouterr().err

    @pytest.mark.usefixtures("interruptible")
    def test_ctrl_c_keeps_rows_and_resume_goes_on(self, tmp_path):
        path = tmp_path / "rows.csv"
        options = ["--axis", "prompt_len=16..4096x4081", *SMALL, "--exact", "--out", str(path)]
        command = [sys.executable, "-m", "sim", "sweep", *options, "--jobs", "2"]
        running = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
        while not path.exists() or path.read_bytes().count(b"\n") < 4:
            assert running.poll() is None, running.communicate()
            time.sleep(0.02)
        os.killpg(running.pid, signal.SIGINT)
        _, said = running.communicate(timeout=60)
        assert running.returncode == 130
        done = len(read_rows(path))
        assert f"interrupted: {done} of 8162 rows are in {path}; --resume goes on" in said
        assert "Traceback" not in said


def rows_of_map():
    """A plane of 3 by 2, two schedules in each cell, one cell where nothing fits."""
    rows = []
    for x in (1.0, 2.0, 10.0):
        for y in ("small", "large"):
            for schedule, rate in (("slow", x), ("fast", 2 * x)):
                fits = (x, y) != (10.0, "large")
                place = "cpu" if schedule == "fast" and x > 1 else "gpu"
                row = {
                    "x": x,
                    "by": "simulator",
                    "y": y,
                    "model": "m",
                    "hardware": "h",
                    "workload": "w",
                    "gen_len": 4,
                    "schedule": schedule,
                }
                rows.append(
                    {**row, "feasible": fits, "attention": place, "throughput_tokens_per_s": rate if fits else None}
                )
    return rows


class TestMaps:
    def test_each_cell_shows_its_fastest_row(self, tmp_path, monkeypatch):
        from matplotlib.figure import Figure

        drawn = []
        monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: drawn.append(figure))
        draw_map(rows_of_map(), "x,y,throughput_tokens_per_s,attention", "map.png")
        numbers, places = drawn[0].axes[:2]
        shown = {(text.get_position(), text.get_text()) for text in numbers.texts}
        assert shown == {((0, 0), "2"), ((1, 0), "4"), ((2, 0), "20"), ((0, 1), "2"), ((1, 1), "4")}
        assert [tick.get_text() for tick in numbers.get_xticklabels()] == ["1", "2", "10"]
        assert [tick.get_text() for tick in numbers.get_yticklabels()] == ["small", "large"]
        assert places.get_title() == "attention (hatched: nothing fits)"
        assert [tick.get_text() for tick in drawn[0].axes[-1].get_yticklabels()] == ["cpu", "gpu"]
        colours = places.collections[0].get_array()
        assert colours.filled(-1).tolist() == [[1, 0, 0], [1, 0, -1]]
        assert "fastest of slow, fast" in drawn[0].get_suptitle()

    def test_a_picture_of_a_run_and_of_its_rows(self, tmp_path):
        rows, one, two = (tmp_path / name for name in ("rows.csv", "one.png", "two.svg"))
        drawn = ("--map", "hardware.link.h2d,prompt_len,throughput_tokens_per_s,schedule")
        sweep(*AXES, *SMALL, "--jobs", 1, "--out", rows, *drawn, "--plot", one)
        sweep("--rows", rows, *drawn, "--plot", two)
        assert one.read_bytes().startswith(b"\x89PNG")
        assert "prompt_len" in two.read_text()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ((), "--axis: missing"),
            (("--axis", "gen_len=3", "--gen-len", 4), "gen_len is an axis already"),
            (("--axis", "schedule=zero", "--schedules", "zero"), "schedule is an axis already"),
            (("--axis", "gen_len=3", "--out", "rows.txt"), "must end in .csv or .jsonl"),
            (("--axis", "gen_len=3", "--resume"), "give the --out file"),
            (("--axis", "gen_len=3", "--map", "a,b,c"), "give both"),
            (("--axis", "gen_len=3", "--map", "a,b,c", "--plot", "x.png"), "give --out too"),
            (("--axis", "gen_len=3", "--map", "a,b", "--plot", "x.png", "--out", "r.csv"), "give X,Y,VALUE"),
            (
                ("--axis", "gen_len=3", "--map", "gen_le,b,c", "--plot", "x.png", "--out", "r.csv"),
                "did you mean gen_len",
            ),
            (("--axis", "gen_len=3", "--map", "a,b,c", "--plot", "x.gif", "--out", "r.csv"), "not a picture"),
            (("--axis", "gen_len=3", "--backend", "spark"), "'spark' is none of loky, threading, dask, ray"),
            (("--axis", "gen_len=3", "--cluster", "tcp://x:1"), "loky has none"),
            (("--axis", "gen_len=3", "--jobs", 0), "--jobs: 0 is not allowed"),
            (("--rows", "none.csv", "--map", "a,b,c", "--plot", "x.png"), "cannot be read"),
            (("--rows", "none.csv"), "give --map and --plot too"),
            (("--rows", "none.csv", "--axis", "gen_len=3"), "leave out --axis"),
        ],
    )
    def test_mistakes_are_one_line(self, options, message, capsys, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        sweep(*options, code=2)
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1
        assert not list(tmp_path.iterdir())

    def test_files_that_are_no_rows(self, tmp_path, capsys):
        for name, content in (("a.csv", "x,y\n1,2\n"), ("b.jsonl", "{\n"), ("c.jsonl", "[1]\n"), ("d.csv", "")):
            (tmp_path / name).write_text(content)
            sweep("--rows", tmp_path / name, "--map", "x,y,z", "--plot", tmp_path / "m.png", code=2)
            assert name in capsys.readouterr().err


def test_the_commands_of_the_docs_can_be_run(tmp_path, monkeypatch):
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    recorder = tmp_path / "python"
    recorder.write_text('#!/bin/sh\nprintf "%s\\n" "$@" "" >> commands\n')
    recorder.chmod(0o755)
    blocks = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "docs" / "sweep.md").read_text(), re.MULTILINE | re.DOTALL)
    subprocess.run(["bash", "-euc", f"PATH={tmp_path}:$PATH\n" + "".join(blocks)], cwd=tmp_path, check=True)
    commands = [text.split("\n") for text in (tmp_path / "commands").read_text().strip().split("\n\n")]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sim.sweep.command._write", lambda *_: 0)
    monkeypatch.setattr("sim.sweep.command._draw", lambda *_: 0)
    assert len(commands) == 6
    for command in commands:
        for file in tmp_path.glob("*.csv"):
            file.unlink()
        assert command[:3] == ["-m", "sim", "sweep"]
        sweep(*command[3:])


def test_help_and_start_up_need_no_library_of_pictures_or_workers():
    script = (
        "import sys; from sim.cli import PROGRAM; PROGRAM.parser(); "
        "print(*[m for m in ('matplotlib', 'joblib', 'scipy', 'numba', 'distributed') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == ""


def test_prices_are_columns_and_rows_without_them_stay_as_they_were():
    plain, priced = (swept(["prompt_len=64"], prices=prices) for prices in (Prices(), Prices(per_hour=0.36)))
    assert priced.columns == (*plain.columns, *MONEY)
    assert priced.digest != plain.digest
    (row,) = map(row_of, priced.points())
    assert tuple(row) == priced.columns
    assert row["money_per_million_tokens"] == pytest.approx(100 / row["throughput_tokens_per_s"])
    assert row["money_per_request"] == pytest.approx(4e-6 * row["money_per_million_tokens"])
