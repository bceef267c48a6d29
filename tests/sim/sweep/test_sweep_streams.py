"""`python -m sim sweep --requests`: a row for each schedule and place of prompts, and their options as axes."""

import json

import pytest
from cases import INPUTS

from sim.admission import Prompts, RequestStream, Service, StreamOptions
from sim.cli import main
from sim.comparison import Asked, compare_served
from sim.problem import Hardware, Problem
from sim.sweep import Base, Sweep, parse_axes, row_of
from traces.errors import InputError

MODEL = str(INPUTS / "small.json")
SMALL = ("--model", MODEL, "--prompt-len", "60", "--gen-len", "8", "--jobs", "1")
SIZES = {"micro_batch_size": 4, "num_micro_batches": 2}
TWENTY = StreamOptions(20, prefill_chunk=64)


def swept(texts, stream=TWENTY, schedules=("cgopipe", "zero"), **base):
    asked = {"prompt_len": 60, "gen_len": 8, "policy": SIZES, **base}
    given = Base(MODEL, "gcp-t4", "mtbench", schedules=schedules, stream=stream, **asked)
    return Sweep(given, parse_axes(texts, Hardware.load("gcp-t4")))


def refusal(capsys, *args):
    assert main(["sweep", *SMALL, *args]) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1, shown
    return shown


def test_each_schedule_has_a_row_for_each_place_of_its_prompts():
    sweep = swept(["prefill_chunk=32,64"])
    assert len(sweep) == 6
    found = [(one.start["prefill_chunk"], one.schedule, one.prompts) for one in sweep.points()]
    assert found == [
        (chunk, *row)
        for chunk in (32, 64)
        for row in (("cgopipe", Prompts.BEFORE), ("cgopipe", Prompts.BESIDE), ("zero", Prompts.BEFORE))
    ]


def test_a_row_is_what_compare_says():
    before, beside, _ = (row_of(point) for point in swept(["ttft=0.5"]).points())
    problem = Problem.of(MODEL, "gcp-t4", prompt_len=60, gen_len=8, padded=True)
    stream, service = RequestStream.of(problem.workload, 20), Service(64, ttft_limit_s=0.5)
    for row, one in zip(
        (before, beside), compare_served(problem, stream, service, ["cgopipe"], Asked({}, 4, 2)), strict=True
    ):
        known = one.to_dict()
        for name in ("throughput_tokens_per_s", "total_s", "occupancy", "bottleneck", "goodput_requests_per_s"):
            assert row[name] == known[name], name
        assert (row["ttft_p90_s"], row["e2e_p50_s"]) == (known["ttft_s"]["p90"], known["e2e_s"]["p50"])
        assert row["gpu_idle"] == pytest.approx(1 - known["lanes"]["GPU"]["utilisation"])
        assert row["prefill_chunk"] == known["prefill_chunk"]


def test_rows_have_the_columns_that_are_said():
    sweep = swept(["requests=8,20", "prompt_batches=1,2", "gen_lens=lognormal:5,0.5,constant"])
    row = row_of(next(sweep.points()))
    assert tuple(row) == sweep.columns
    assert len(set(sweep.columns)) == len(sweep.columns)
    assert (row["requests"], row["prompt_batches"], row["gen_lens"]) == (8, 1, "lognormal:5,0.5")


def test_more_requests_take_longer():
    rows = [row_of(point) for point in swept(["requests=8,16,24"], StreamOptions(1), ("zero",)).points()]
    assert [row["requests"] for row in rows] == [8, 16, 24]
    assert rows[0]["total_s"] < rows[1]["total_s"] < rows[2]["total_s"]
    assert rows[2]["total_s"] - rows[1]["total_s"] == pytest.approx(rows[1]["total_s"] - rows[0]["total_s"])


def test_what_cannot_be_is_a_row():
    row = row_of(next(swept(["gen_lens=lognormal:9,1"]).points()))
    assert row["feasible"] is False
    assert "9 tokens are more than the 8" in row["reason"]
    assert row["throughput_tokens_per_s"] is None


def test_without_requests_points_and_digest_are_as_they_were():
    plain = swept(["gen_len=8"], stream=None, gen_len=None)
    assert [(one.stream, one.prompts) for one in plain.points()] == [(None, None)] * 2
    assert "prefill_s" in plain.columns
    assert not {"requests", "prompts", "occupancy"} & set(plain.columns)


def test_the_digest_knows_what_the_stream_is(tmp_path):
    file, digests = tmp_path / "trace.csv", []
    for text in ("prompt_tokens\n60\n", "prompt_tokens\n61\n"):
        file.write_text(text)
        digests.append(swept(["seed=1"], StreamOptions(20)).digest)
        digests.append(swept(["ttft=1"], StreamOptions(str(file)), prompt_len=None).digest)
    assert digests[0] == digests[2]
    assert len(set(digests)) == 3


def test_requests_of_a_file(tmp_path):
    file = tmp_path / "trace.csv"
    file.write_text("prompt_tokens,generated_tokens\n60,5\n50,8\n")
    row = row_of(next(swept(["prefill_chunk=64"], StreamOptions(str(file)), prompt_len=None).points()))
    assert (row["workload"], row["gen_len"], row["requests"]) == ("trace", 8, str(file))
    assert row["num_steps"] == 8


def test_rows_go_to_a_file_and_are_resumed(tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    sizes = ("--micro-batch-size", "4", "--num-micro-batches", "2", "--schedules", "cgopipe")
    args = ["sweep", *SMALL, *sizes, "--requests", "20", "--axis", "prefill_chunk=32,64", "--out", str(out)]
    assert main(args) == 0
    whole = out.read_text()
    assert [json.loads(line)["prompts"] for line in whole.splitlines()] == ["before", "beside"] * 2
    out.write_text("".join(line + "\n" for line in whole.splitlines()[:3]))
    assert main([*args, "--resume"]) == 0
    assert out.read_text() == whole
    capsys.readouterr()


def test_requests_may_be_an_axis_alone(tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    sizes = ("--micro-batch-size", "4", "--num-micro-batches", "2", "--schedules", "zero")
    assert main(["sweep", *SMALL, *sizes, "--axis", "requests=4..8x2", "--tpot", "9", "--out", str(out)]) == 0
    assert [json.loads(line)["requests"] for line in out.read_text().splitlines()] == [4, 8]
    capsys.readouterr()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--axis", "prefill_chunk=64"), "--prefill-chunk: says something of a stream of requests"),
        (("--axis", "padded=true", "--tpot", "1"), "--tpot: says something"),
        (("--axis", "requests=0"), "'0' is not a whole number of at least 1"),
        (("--axis", "requests=4", "--by", "hrm"), "--by hrm: knows one batch only"),
        (("--axis", "requests=4", "--axis", "arrivals=soon"), "arrivals 'soon': unknown"),
        (("--axis", "requests=4", "--axis", "priority=shortest"), "priority: 'shortest' is not allowed"),
        (("--axis", "requests=4", "--axis", "preempt=true", "--schedules", "zero"), "--preempt: none of zero carries"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(args, says, capsys):
    assert says in refusal(capsys, *args)


def test_an_axis_of_requests_without_any_is_refused():
    with pytest.raises(InputError, match="--axis ttft: says something of a stream of requests"):
        swept(["ttft=1"], stream=None)
