"""What every command writes as JSON is what `traces/schemas` says: a field that comes, goes or changes turns this red.

The reports of a campaign and of a proof are held against theirs where these are run: tests/validation/test_campaign.py
and test_gpu.py; what `engine jax` writes, in tests/engine/test_xla.py.
"""

import json
from copy import deepcopy
from importlib import import_module
from pathlib import Path

import pytest
from cases import INPUTS
from jsonschema import Draft202012Validator
from schemas import FOLDER, faults

from engine.generation.files.answers import Answer, error_line, output_line
from engine.generation.files.made_by import MadeBy
from engine.generation.files.requests import Request
from engine.generation.rows import TokenLogprobs
from sim.problem import Histogram, LayerHistogram, TokenCounts

ROOT = Path(__file__).resolve().parents[2]
SHARED = "common.json"
SMALL = "--model INPUTS/small.json --hardware gcp-2xt4 --prompt-len 60 --gen-len 8"
SIZES = "--micro-batch-size 4 --num-micro-batches 2"
STREAM = "--model INPUTS/small.json --hardware gcp-t4 --prompt-len 60 --gen-len 8"
COMMANDS = {
    "compare": ("sim", f"compare {SMALL} {SIZES} --jobs 1 --json -"),
    "compare, nothing fits": ("sim", f"compare --model deepseek-v3 --hardware t4 {SIZES} --jobs 1 --json -"),
    "compare, one token": ("sim", f"compare {SMALL} {SIZES} --gen-len 1 --schedules cgopipe --jobs 1 --json -"),
    "check": ("sim", "check INPUTS/llama-bench.json --model qwen3-30b-a3b --hardware rtx3090 --json -"),
    "compare-requests": (
        "sim",
        f"compare {STREAM} {SIZES} --requests 20 --schedules cgopipe,zero --ttft 1 --prefill-chunk 64 --jobs 1"
        " --json -",
    ),
    "compare-requests, nothing fits": (
        "sim",
        f"compare --model deepseek-v3 --hardware t4 {SIZES} --requests 20 --schedules cgopipe --jobs 1 --json -",
    ),
    "plan": (
        "sim",
        "plan --model INPUTS/four-layers.json --prompt-len 60 --gen-len 8 --schedules zero,accelerate"
        " --jobs 1 --json -",
    ),
    "plan, exported": (
        "sim",
        "plan --model INPUTS/four-layers.json --prompt-len 60 --gen-len 8 --schedules accelerate --batch 2 --quick"
        " --export llama.cpp --jobs 1 --json -",
    ),
    "plan, energy": (
        "sim",
        "plan --model INPUTS/four-layers.json --prompt-len 60 --gen-len 8 --schedules zero --objective energy --quick"
        " --power-cap 60,70 --price-per-kwh 0.3 --no-band --jobs 1 --json -",
    ),
    "plan-requests": (
        "sim",
        "plan --model INPUTS/four-layers.json --prompt-len 60 --gen-len 8 --schedules zero,cgopipe --requests 40"
        " --quick --jobs 1 --json -",
    ),
    "policy": ("sim", "plan --optimizer hrm --quick --jobs 1 --out OUT"),
    "plan, hrm": ("sim", "plan --optimizer hrm --quick --jobs 1 --json -"),
    "sweep-row": ("sim", f"sweep {SMALL} --axis schedule=cgopipe,zero {SIZES} --jobs 1 --out OUT"),
    "sweep-row, hrm": ("sim", "sweep --axis hardware.link.h2d=8,16 --by hrm --jobs 1 --out OUT"),
    "sweep-row, nothing fits": (
        "sim",
        f"sweep --model deepseek-v3 --hardware t4 --axis gen_len=8 {SIZES} --jobs 1 --out OUT",
    ),
    "sweep-row-requests": (
        "sim",
        f"sweep {STREAM} {SIZES} --requests 20 --axis prefill_chunk=32,64 --schedules cgopipe,zero --jobs 1 --out OUT",
    ),
    "sweep-row-requests, nothing fits": (
        "sim",
        f"sweep --model deepseek-v3 --hardware t4 {SIZES} --axis requests=20 --schedules zero --jobs 1 --out OUT",
    ),
    "roofline": ("sim", "roofline --json -"),
    "list": ("sim", "list --json -"),
    "list, one machine": ("sim", "list gcp-2xt4 --json -"),
    "replay": ("validation", "replay INPUTS/engine.json.gz --hardware INPUTS/engine.toml --json -"),
    "replay, no machine": ("validation", "replay INPUTS/engine.json.gz --json -"),
    "published": ("validation", "published --jobs 1 --predict INPUTS/rows.csv --json -"),
    "trace-summary": ("traces", "summary INPUTS/engine.json.gz INPUTS/simulated.json.gz --json -"),
    "trace-critical-path": ("traces", "critical-path INPUTS/engine.json.gz --json -"),
    "trace-diff": ("traces", "diff INPUTS/engine.json.gz INPUTS/simulated.json.gz --json -"),
}


WITH_A_BAND = {"bands", "stays_best"}
"""Fields that `--no-band` leaves out."""


def name_of(case):
    return case.partition(",")[0]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """What a command writes, run once: a list of JSON values."""
    known = {}

    def write(case, capsys):
        if case not in known:
            package, line = COMMANDS[case]
            out = tmp_path_factory.mktemp("out") / "out.jsonl"
            words = line.replace("INPUTS", str(INPUTS)).replace("OUT", str(out)).split()
            import_module(f"{package}.cli").main(words)
            text = capsys.readouterr().out
            text = out.read_text(encoding="utf-8") if "--out" in words else text
            known[case] = [json.loads(one) for one in (text.splitlines() if words[0] == "sweep" else [text])]
        return deepcopy(known[case])

    return write


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.json")), ids=lambda file: file.name)
def test_a_schema_is_one_of_draft_2020_12_and_says_what_it_is_for(file):
    schema = json.loads(file.read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == Draft202012Validator.META_SCHEMA["$id"]
    assert (schema["$id"], bool(schema["title"])) == (file.name, True)
    assert file.name == SHARED or schema["description"].endswith(".")


def test_there_is_one_for_everything_that_is_written():
    described = {file.stem for file in FOLDER.glob("*.json")} - {Path(SHARED).stem}
    assert {name_of(case) for case in COMMANDS} | {
        "campaign",
        "campaign-streams",
        "gpu",
        "jax",
        "routing",
        "run-line",
        "spreads",
    } == described


@pytest.mark.parametrize("case", COMMANDS)
def test_a_command_writes_what_its_schema_says(case, written, capsys):
    values = written(case, capsys)
    assert values
    for value in values:
        assert faults(name_of(case), value) == []


@pytest.mark.parametrize("case", [case for case in COMMANDS if name_of(case) == case])
def test_a_field_that_is_gone_or_has_another_type_is_seen(case, written, capsys):
    """Every field of the top level, one at a time; the version may be missing until all commands write it."""
    (value, *_) = written(case, capsys)
    for field in set(value) - {"schema"}:
        may_be_gone = field in WITH_A_BAND
        assert may_be_gone or faults(case, {key: one for key, one in value.items() if key != field})
        assert faults(case, {**value, field: [[]]})


@pytest.mark.parametrize("case", [case for case in COMMANDS if name_of(case) == case and "sweep" not in case])
def test_a_field_that_is_new_is_seen_wherever_it_appears(case, written, capsys):
    """In the object itself, and in the first object of each list; a sweep's rows have columns of their axes."""
    (value, *_) = written(case, capsys)
    assert faults(case, {**value, "more": 1})
    for field, items in value.items():
        if isinstance(items, list) and items and isinstance(items[0], dict):
            assert faults(case, {**value, field: [{**items[0], "more": 1}]})


def test_another_version_is_refused(written, capsys):
    (value,) = written("roofline", capsys)
    assert faults("roofline", {**value, "schema": 1}) == []
    assert faults("roofline", {**value, "schema": 2})


def test_the_report_of_the_campaign_that_is_kept():
    """It was made before versions were written."""
    file = ROOT / "benchmarks" / "results" / "campaign-emulated" / "report.json"
    assert faults("campaign", {"schema": 1, **json.loads(file.read_text(encoding="utf-8"))}) == []


def test_a_routing_histogram(tmp_path):
    measured = LayerHistogram(2, TokenCounts(3, (3, 2, 1)), TokenCounts(0, (0, 0, 0)))
    Histogram("m", (None, measured)).write(tmp_path / "routing.json")
    value = json.loads((tmp_path / "routing.json").read_text(encoding="utf-8"))
    assert faults("routing", value) == []
    for field in ("model", "layers"):
        assert faults("routing", {key: one for key, one in value.items() if key != field})
    for field in ("top_k", "prefill", "decode"):
        layer = {key: one for key, one in value["layers"][1].items() if key != field}
        assert faults("routing", {**value, "layers": [layer]})


OPENAI = {"custom_id": "a", "body": {"messages": []}}
COMPLETION = {"custom_id": "a", "body": {"prompt": "Hello"}}
MADE_BY = MadeBy("model", {"max_new_tokens": 4}, 7)
THERE = Answer([3, 4], "there", True)
TOLD = Answer([3], "a", False, [TokenLogprobs(3, -0.5, [(3, -0.5), (4, -1.5)])])


@pytest.mark.parametrize(
    "line",
    [
        output_line(Request(1, {"prompt": "Hello", "tag": 7}, [1, 2]), [THERE], MADE_BY),
        output_line(Request(1, {"prompt_token_ids": [1, 2]}, [1, 2]), [Answer([3, 4], None, False)], MADE_BY),
        output_line(Request(1, {"prompt": "Hello", "n": 2}, [1, 2]), [THERE, TOLD], MADE_BY),
        output_line(Request(1, OPENAI, [1, 2]), [THERE], MADE_BY),
        output_line(Request(1, OPENAI, [1, 2]), [TOLD], MADE_BY),
        output_line(Request(1, COMPLETION, [1, 2]), [THERE, TOLD], MADE_BY, text_of=str),
        error_line(Request(1, {"prompt": 3}, error="prompt is a int")),
        error_line(Request(1, {}, error="line 1 is not JSON")),
        error_line(Request(1, OPENAI, error="the chat template refuses these messages")),
    ],
    ids=["text", "tokens", "choices", "openai", "logprobs", "completion", "error", "no JSON", "openai error"],
)
def test_a_line_of_results(line):
    value = json.loads(line)
    assert faults("run-line", value) == []
    for field in set(value) & {"token_ids", "text", "finished", "error", "response", "id", "made_by", "choices"}:
        assert faults("run-line", {key: one for key, one in value.items() if key != field})
