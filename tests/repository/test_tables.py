"""Every table is readable in windows of 80, 100 and 120 columns: nothing cut, nothing broken, nothing unexplained."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from rich.cells import cell_len

from sim.admission import Lengths, RequestStream, Service
from sim.cli import main as sim
from sim.comparison import Asked, compare, compare_served, print_comparison, print_served
from sim.planning import PolicyGrid, seconds, speeds
from sim.planning.explanation import FACTORS, RESOURCES, Explanation, MemoryUse, Replanned
from sim.planning.policies.placed import placed_experts
from sim.planning.report import print_plan
from sim.planning.search import plan
from sim.problem import Basis, Hardware, Model, Problem, Workload
from sim.schedule import LaneKind, Op, registered
from sim.simulation import bands_of, predict
from traces.cli import PROSE, TEXT, WORDS, Report, glossary, main as traces
from traces.files import read_trace
from validation.published.fit import CASES, Fitted
from validation.published.holdout import HeldOut
from validation.published.kernels import predict_kernels
from validation.published.latency import (
    LATENCY,
    FittedRates,
    PredictedRate,
    print_rate_fits,
    print_rates,
    read_latency_rows,
)
from validation.published.latency.fit import EXPONENTS, RATE_FITS
from validation.published.predict import Predicted
from validation.published.report import print_fits, print_kernels, print_report
from validation.published.rows import THROUGHPUT, read_rows
from validation.replay import replay_trace
from validation.replay.report import print_replay

ROOT = Path(__file__).resolve().parents[2]
INPUTS = ROOT / "tests/golden/inputs"
RUN, SIMULATED = str(INPUTS / "engine.json.gz"), str(INPUTS / "simulated.json.gz")
MACHINE = str(ROOT / "benchmarks/results/campaign-emulated/machine-few-large-experts.toml")
WIDTHS = (80, 100, 120)
UNITS = {"GB", "ms", "µs"}
ABBREVIATION = re.compile(r"[A-Z]\w*[A-Z0-9]\w*|\w+_\w+|[μτ×−]")


def problem(model, hardware, gen_len):
    return Problem(
        Model.load(model), Hardware.load(hardware), replace(Workload.load("mtbench"), gen_len=gen_len, padded=True)
    )


@cache
def compared(model, hardware, size, layers=None):
    asked = problem(model, hardware, 4)
    asked = replace(asked, model=replace(asked.model, layers=asked.model.layers[:layers]))
    return asked, compare(asked, list(registered()), Asked({}, size, 2), jobs=1)


def comparison(model="mixtral-8x7b", hardware="gcp-t4", size=36, baseline="flexgen", layers=None):
    print_comparison(*compared(model, hardware, size, layers), baseline, {})


@cache
def served():
    """Requests that end early, on a schedule that can mix and on two that cannot."""
    asked = Problem.of("olmoe-1b-7b", "t4", prompt_len=64, gen_len=6)
    stream = RequestStream.of(asked.workload, 40, lengths=Lengths.parse("lognormal:4,0.6"))
    names, service = ["cgopipe", "flexgen", "zero"], Service(prefill_chunk=256, ttft_limit_s=3.0)
    return compare_served(asked, stream, service, names, Asked({}, 8, 2), jobs=1)


def serving():
    print_served(served(), "cgopipe")


@cache
def planned():
    grid = PolicyGrid((1, 8, 64), (1, 4, 16), expert_values=3)
    choice = plan(problem("olmoe-1b-7b", "t4", 5), ["cgopipe", "zero"], jobs=1, grid=grid, at_least=2)
    return choice, predict(choice.best.setup)


def planning():
    choice, prediction = planned()
    tiers = tuple(MemoryUse(name, 16 * 10**9, dict.fromkeys(PARTS, 10**9)) for name in ("device", "host", "pinned"))
    changes = tuple(Replanned(what, by, choice.best, by - 1) for what in RESOURCES for by in FACTORS)
    placed = placed_experts(choice.best.setup.placement)
    why = Explanation(tiers, 0.001, ("prefill is bound by GPU",), None, None, changes, placed)
    setups = [one.best.setup for one in choice.plans.values()]
    bands = dict(zip(choice.plans, bands_of(setups, jobs=1), strict=True))
    print_plan(choice, why, prediction, 10, 1.0, bands)


PARTS = ("activations", "weight slots", "embedding and head", "attention exchange", "kv buffers", "hidden states")


@cache
def replayed():
    return replay_trace(read_trace(RUN), Hardware.load(MACHINE))


def published():
    """All rows, with predictions of about the usual length; one of them has none."""
    rows = read_rows(THROUGHPUT)
    found = [Predicted(row, 123.4, 1234.5, "117×1 pinned", "PIN", "pinned") for row in rows[1:]]
    print_report([Predicted(rows[0], None, None, reason="no machine"), *found], own_file=False)
    print_kernels(predict_kernels(Hardware.load("gcp-l4")))
    fits = [Fitted(case, {one.name: 0.5 for one in case.parameters}, 12) for case in CASES]
    print_fits(fits, [HeldOut("fold 1", fits[0], found)])


def rates():
    """All published rates, with predictions of about the usual length, and a fit of all."""
    rows = read_latency_rows(LATENCY)[0]
    found = [PredictedRate(row, 123.4, "rtx4090-2x6454s", "cpu-experts", "CPU", "assumed") for row in rows[1:]]
    print_rates([PredictedRate(rows[0], None, reason="no machine"), *found], own_file=False)
    values = {case.machine: {one.name: one.start for one in case.parameters} for case in RATE_FITS}
    print_rate_fits(FittedRates(values, {one.model: one.start for one in EXPONENTS}))


SHOWN = {
    "compare": comparison,
    "compare on several devices": lambda: comparison("mixtral-8x22b", "gcp-2xt4", 8, None, layers=8),
    "compare of requests": serving,
    "plan": planning,
    "roofline": lambda: sim(["roofline"]),
    "list": lambda: sim(["list"]),
    "list of a machine": lambda: sim(["list", "gcp-t4"]),
    "replay": lambda: print_replay(replayed()),
    "published": published,
    "published rates": rates,
    "trace summary": lambda: traces(["summary", RUN]),
    "trace critical-path": lambda: traces(["critical-path", RUN]),
    "trace diff": lambda: traces(["diff", RUN, SIMULATED]),
}
SPEEDS = ("prefill tokens/s", "first token", "decode tokens/s", "a request")
CORE = {
    "compare": (*SPEEDS, "× slowest", "× flexgen", "bound by", "over it", "GPU idle", "HRM (× simulated)"),
    "compare of requests": ("prompts", "steady", "chunk", "places", "goodput", "TTFT p99", "TPOT p50", "E2E p90"),
    "plan": (*SPEEDS, "at most", "busiest", "GB device", "GB host", "GB pinned"),
    "published": ("measured tokens/s", "predicted tokens/s", "error", "HRM error", "mean |error|"),
    "replay": ("MAPE", "WAPE", "bias", "points", "measured tokens/s"),
}


@pytest.fixture
def tables(monkeypatch):
    """(headings, texts of cells that may not break, texts that may) of every table that is printed."""
    seen = []
    table = Report.table

    def watched(self, columns, rows, *args, **kwargs):
        groups = [columns] if isinstance(columns, dict) else columns
        hows = {name: how for group in groups for name, how in group.items()}
        rows = [list(row) for row in rows]
        prose = [how in (PROSE, WORDS) for how in hows.values()]
        texts = [(text, may) for row in rows for text, may in zip(row, prose, strict=True) if isinstance(text, str)]
        seen.append((list(hows), texts))
        table(self, columns, rows, *args, **kwargs)

    monkeypatch.setattr(Report, "table", watched)
    return seen


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("what", SHOWN)
def test_a_report_fits_its_window_and_explains_itself(what, width, tables, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    SHOWN[what]()
    out = capsys.readouterr().out
    flat = " ".join(out.split())
    assert [line for line in out.splitlines() if cell_len(line.rstrip()) > width] == []
    assert "…" not in out
    words = set(out.split())
    headings = [name for names, _ in tables for name in names]
    assert {word for name in headings for word in name.split()} - words == set()
    for text, may_break in (one for _, texts in tables for one in texts):
        assert text.split() == [] or (set(text.split()) <= words if may_break else text in out), text
    assert set(CORE.get(what, ())) <= set(headings)
    for name in headings:
        for short in set(ABBREVIATION.findall(name)) - UNITS:
            explained = [word for words in glossary.legend(name).values() for word in words if short in word]
            assert any(f"{word} = " in flat for word in explained), (name, short)


def test_speeds_of_the_phases_add_up():
    """Two micro-batches of 36 requests, padded to 418 tokens; the first of four tokens comes with prefill."""
    _, outcomes = compared("mixtral-8x7b", "gcp-t4", 36)
    for one in outcomes:
        if one.prediction is not None:
            prefill_s, decode_s = one.prediction.prefill_s, one.prediction.decode_s
            prefill, first, decode, of_each = speeds(one.prediction)
            requests = one.prediction.num_requests
            assert prefill * prefill_s == pytest.approx(requests * 418)
            assert first == seconds(prefill_s)
            assert decode * decode_s == pytest.approx(requests * 3)
            assert of_each * decode_s == pytest.approx(3)


def test_without_a_decode_step_there_is_no_speed_of_decode():
    setup = compared("mixtral-8x7b", "gcp-t4", 36)[1][0].setup
    alone = replace(setup.problem, workload=replace(setup.problem.workload, gen_len=1))
    found = predict(replace(setup, problem=alone), compiled=True)
    assert speeds(found) == (72 * 418 / found.prefill_s, seconds(found.prefill_s), None, None)


def test_a_table_too_wide_goes_on_below_with_its_key(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "23")
    Report().table({"name": "", "first": ">", "second one": ">", "third": ">"}, [("some", "111111", "2222", "3")])
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[1:] == [
        "              second", "name   first     one", "────────────────────", "some  111111    2222",
        "", "name  third", "───────────", "some      3",
    ]  # fmt: skip


def test_settings_go_on_in_the_next_line_where_names_would_fill_the_window(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    setting = "1×1 gpu r_w 0.336 r_h 0.508 r_f 0.156 r_c 1 prefill cpu locked"
    Report().table({"schedule": TEXT, "policy": WORDS, "one": ">", "two": ">"}, [("zero", setting, "1", "2")], keys=2)
    shown = capsys.readouterr().out
    assert len(re.findall("─{9,}", shown)) == 1, "all columns side by side"
    assert all(word in shown for word in setting.split())
    assert "r_w = share of the experts" in " ".join(shown.split()), "explained, as prose is not"


def test_a_word_is_explained_once_a_report(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    out = Report()
    out.table({"WAPE": ".1%"}, [(0.5,)])
    out.table({"WAPE": ".1%", "lane": ""}, [(None, "H2D")])
    out.say("[bold]end[/bold]")
    shown = capsys.readouterr().out
    assert shown.count("WAPE = ") == 1
    assert "50.0%" in shown
    assert "Lanes: H2D = copies from host to device.\n\nend\n" in shown


def test_a_legend_takes_whole_words_and_the_longest():
    found = {
        word for words in glossary.legend("HRM error, StoreKV, left-over, mean |error|, 2×3").values() for word in words
    }
    assert found == {"HRM", "error", "StoreKV", "mean |error|", "×"}


def test_every_lane_task_and_field_of_a_trace_is_in_the_glossary():
    known = {word for words in glossary.chapters().values() for word in words}
    assert {*map(str, LaneKind), *map(str, Op)} <= known
    basis = glossary.chapters()["Machines"]["basis"]
    assert [one for one in Basis if str(one) not in basis] == []
    assert {"step", "layer", "micro-batch", "page", "bound", "waited for", "cause", "rank", "span"} <= known


def test_no_word_has_two_meanings():
    words = [word for words in glossary.chapters().values() for word in words]
    assert len(words) == len(set(words))


def test_the_document_is_the_glossary():
    assert (ROOT / "docs/glossary.md").read_text() == glossary.markdown(), "python -m traces.cli.glossary writes it"


def test_a_terminal_gives_its_width():
    """In a pseudo-terminal of 80 columns, colours and all."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    command = [sys.executable, "-m", "sim", "list", "gcp-t4"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment | {"TERM": "xterm"}, stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        shown = b""
        while piece := _read(ours):
            shown += piece
    os.close(ours)
    assert process.returncode == 0
    text = re.sub(r"\x1b\[[\d;]*m", "", shown.decode())
    assert text != shown.decode()  # a terminal gets colours
    longest = max(cell_len(line.rstrip()) for line in text.splitlines())
    assert 72 <= longest <= 80
    assert "sysrqmts.com/en/gpus/nvidia/tesla/t4" in text


def _read(file):
    try:
        return os.read(file, 65536)
    except OSError:  # the other end is closed
        return b""


@pytest.mark.parametrize(("columns", "longest"), [(None, 100), ("120", 120), ("x", 100)])
def test_a_pipe_has_the_columns_that_it_is_told_or_a_plain_width(columns, longest):
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    environment |= {"COLUMNS": columns} if columns else {}
    command = [sys.executable, "-m", "sim", "list"]
    out = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, check=True).stdout
    found = max(cell_len(line.rstrip()) for line in out.splitlines())
    assert longest - 8 <= found <= longest
