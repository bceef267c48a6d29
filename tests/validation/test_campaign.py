"""A short campaign end to end: what it runs, that it goes on, and that its report says what its traces say."""

import dataclasses
import json
import statistics
from types import SimpleNamespace

import msgspec
import pytest
from schemas import faults
from short_calibrations import short_calibrations

from engine.device import EmulatedDevice
from sim.schedule import by_name, registered
from sim.simulation import StreamRecord, StreamRun
from traces.files import read_trace
from validation.campaign.command import write, write_streams
from validation.campaign.execute import PLANNED, Campaign
from validation.campaign.findings import analyse, regrets_of
from validation.campaign.grid import STANDARD, CampaignGrid, few_large_experts, many_small_experts
from validation.campaign.measurements import Measurements
from validation.campaign.streams import STREAMS, StreamGrid, analyse_streams
from validation.campaign.streams.report import ASKED
from validation.cli import main
from validation.replay import RecordedStream, replay_trace

SHORT = CampaignGrid(
    models={"few": lambda: few_large_experts(32, 2), "many": lambda: many_small_experts(32, 2)},
    requests=4,
    micro_batch_size=2,
    prompt_tokens=5,
    gen_len=4,
    policies=({"batch_size": 4, "micro_batch_size": 2, "attention": "gpu"},),
    others=(),
    placements=({"schedule": "hybrid", "batch_sizes": [1], "experts_on_device": 0.5, "experts_on_host": 0.25},),
)
REPEATS = 2


@pytest.fixture(autouse=True, scope="module")
def quick_calibrations():
    with short_calibrations():
        yield


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    def device():
        return EmulatedDevice(0.5e9, 0.5e9, 1 << 27)

    folder = tmp_path_factory.mktemp("campaign")
    made = Campaign(folder, SHORT, REPEATS, device, quick_calibration=True, watches_speed=False)
    told = []
    made.run(lambda done, total, doing: told.append((done, total)))
    assert told[-1][0] == told[-1][1]
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    return made


@pytest.fixture
def findings(campaign):
    return analyse(campaign)


def test_the_standard_grid_is_large_enough():
    cases = STANDARD.cases()
    assert len(cases) >= 24
    assert len({case.name for case in cases}) == len(cases)
    for model in STANDARD.models:
        assert {case.schedule for case in cases if case.model == model} == set(registered())
    for case in cases:
        case.policy.check_places(case.chosen_schedule)


def test_every_schedule_and_the_planner_s_choice_are_run(campaign, findings):
    for model in SHORT.models:
        own = [run.case for run in findings.runs if run.case.model == model]
        assert {case.schedule for case in own} == set(registered())
        asked = sorted(case.label for case in own if case.label.startswith(PLANNED))
        assert asked == [f"{PLANNED}-for-1", f"{PLANNED}-for-4"]
        assert sum(case.schedule == "hybrid" and case.batch_size == 1 and not case.label for case in own) == 1
    assert findings.missing == ()
    assert len(findings.regrets) == 2 * len(SHORT.models)
    assert findings.origin == "emulated device"


def test_few_requests_are_ranked_among_themselves():
    for model in STANDARD.models:
        for requests in (1, 4, 16):
            own = STANDARD.cases_of(model, requests)
            assert {"n-cpu-moe", "cpu-experts", "expert-cache", "hybrid"} < {case.schedule for case in own}
            assert {case.batch_size for case in own} == {requests}
    assert any(case.policy.groups for case in STANDARD.cases())


def test_nothing_is_run_twice(campaign):
    machines = {file: file.read_text() for file in campaign.folder.glob("machine-*.toml")}
    files = {file: file.stat().st_mtime_ns for file in campaign.folder.rglob("*.json*") if "report" not in file.name}
    gone = sorted(files)[-1]
    gone.unlink()
    campaign.run()
    assert {file: file.read_text() for file in machines} == machines
    for file, before in files.items():
        assert (file.stat().st_mtime_ns != before) == (file == gone)


def test_runs_are_watched_over_unless_any_speed_will_do(campaign, monkeypatch):
    watched = []

    class Watch:
        def __init__(self, reference, file):
            assert file.parent == campaign.folder

        def __call__(self, make):
            watched.append(make())
            return watched[-1]

    monkeypatch.setattr("validation.campaign.measurements.Steady", Watch)
    file = campaign.trace_file(campaign.cases()[0], 0)
    for watches, times in ((True, 1), (False, 0)):
        watched.clear()
        file.unlink()
        dataclasses.replace(campaign, watches_speed=watches).run()
        assert len(watched) == times
        assert file.exists()


def test_an_interrupted_run_leaves_no_half_file(campaign, monkeypatch):
    case = campaign.cases()[0]
    file = campaign.trace_file(case, 0)
    kept = file.read_bytes()
    file.unlink()

    def interrupted(trace):
        raise KeyboardInterrupt

    monkeypatch.setattr("traces.files.chrome_writer.find_critical_path", interrupted)  # the half of a file is written
    with pytest.raises(KeyboardInterrupt):
        campaign.run()
    assert not list(file.parent.glob(f"*{file.name}")), "neither the file nor an unfinished one"
    found = analyse(campaign)
    assert found.missing == (f"{case.name}: 1 of {REPEATS} repeats",)
    file.write_bytes(kept)


def test_the_numbers_are_those_of_the_traces(campaign, findings):
    run = findings.runs[3]
    replays = [
        replay_trace(read_trace(campaign.trace_file(run.case, repeat)), campaign.machine(run.case.model))
        for repeat in range(REPEATS)
    ]
    tokens = run.case.batch_size * run.case.gen_len
    rates = [tokens / (one.measured.makespan_ns / 1e9) for one in replays]
    assert run.measured.median == pytest.approx(statistics.median(rates))
    assert (run.measured.low, run.measured.high) == (pytest.approx(min(rates)), pytest.approx(max(rates)))
    assert run.predicted_tokens_per_s == pytest.approx(tokens / (replays[0].predicted.makespan_ns / 1e9))
    assert run.error == pytest.approx(run.predicted_tokens_per_s / run.measured.median - 1)
    assert run.order_errors == tuple(one.order_check.error for one in replays)
    assert run.handed_over_errors == tuple(one.order_check.error_with_hand_over for one in replays)
    assert all(after > before for before, after in zip(run.order_errors, run.handed_over_errors, strict=True))


def test_ops_hold_all_the_time_that_the_tasks_took(campaign, findings):
    spans = sum(statistics.median(times) for case in campaign.cases() for times in _durations(campaign, case).values())
    assert sum(one.measured_s for one in findings.ops) == pytest.approx(spans / 1e9, rel=1e-6)
    assert all(abs(one.bias) <= one.wape + 1e-12 for one in findings.ops)


def _durations(campaign, case):
    found = {}
    for repeat in range(REPEATS):
        for span in read_trace(campaign.trace_file(case, repeat)).spans:
            found.setdefault(span.key, []).append(span.duration_ns)
    return found


def test_regret_is_what_the_choice_loses_against_the_best_measured(findings):
    for lost in findings.regrets:
        requests = next(int(run.case.label.split("-")[-1]) for run in findings.runs if run.case.name == lost.chosen)
        own = [run for run in findings.runs if run.case.model == lost.model and run.case.batch_size <= requests]
        best = max(run.measured.median for run in own)
        assert lost.regret == pytest.approx(1 - lost.chosen_tokens_per_s / best)
        assert lost.regret >= 0


def test_regret_is_taken_over_runs_of_one_length():
    """Of a longer run's tokens fewer come from prefill: what is faster because of that is no better choice."""

    def ran(name, gen_len, tokens_per_s, label=""):
        case = SimpleNamespace(name=name, model="m", gen_len=gen_len, batch_size=1, label=label)
        return SimpleNamespace(case=case, measured=SimpleNamespace(median=tokens_per_s))

    runs = [ran("chosen", 8, 9.0, f"{PLANNED}-for-1"), ran("as long", 8, 10.0), ran("longer", 64, 30.0)]
    (lost,) = regrets_of(None, runs)
    assert (lost.chosen, lost.best, lost.regret) == ("chosen", "as long", pytest.approx(0.1))


def test_the_report_says_what_was_found_and_misses_no_bar_silently(campaign, findings):
    write(campaign, findings)
    text = (campaign.folder / "report.md").read_text()
    numbers = json.loads((campaign.folder / "report.json").read_text())
    assert faults("campaign", numbers) == []
    for run in findings.runs:
        assert run.case.name in text
        assert f"{run.measured.median:.1f}" in text
    assert numbers["summary"]["layer3_worst"] == findings.run_worst
    assert ("**missed**" in text) == (
        findings.order_worst > 0.03
        or findings.handed_over_worst > 0.03
        or max(findings.duration_errors.values()) > 0.1
        or findings.run_median > 0.03
        or findings.run_worst > 0.12
        or any(lost.regret > 0.01 for lost in findings.regrets)
        or any(one.ranking.tau not in (None, 1) for one in findings.decisions)
        or not all(check.exact for check in findings.mechanics)
    )
    assert "| WAPE | " in text.partition("## Words")[2]
    for picture in ("runs.png", "ops.png", "worst.png"):
        assert (campaign.folder / picture).stat().st_size > 10_000


def test_a_prediction_follows_the_calibration(campaign, findings):
    """A machine with half the link must be predicted slower where the link binds: nothing is fitted to the runs."""
    case = next(run.case for run in findings.runs if run.case.schedule == "accelerate")
    trace, machine = read_trace(campaign.trace_file(case, 0)), campaign.machine(case.model)
    slow = machine.scaled("link.h2d_pageable", 0.25)
    usual, halved = (replay_trace(trace, one).run_check.run.predicted_tokens_per_s for one in (machine, slow))
    assert halved < 0.8 * usual


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--repeats", "0"], "--repeats: 0"),
        (["--report-only"], "holds no campaign"),
        (["--device", "gpu"], "'gpu'"),
        (["--h2d-gbs", "-1"], "h2d"),
    ],
)
def test_bad_options_are_one_line(arguments, named, tmp_path, capsys):
    assert main(["campaign", "--out", str(tmp_path / "out"), *arguments]) == 2
    message = capsys.readouterr().err
    assert named in message
    assert message.count("\n") == 1


def test_a_case_is_named_by_all_that_tells_it_apart():
    case = SHORT.cases()[0]
    other = dataclasses.replace(case, fields={"experts_on_device": 0.5})
    assert case.name != other.name
    assert other.policy.experts_on_device == 0.5


def test_few_requests_generate_more_in_the_standard_campaign():
    lengths = {case.batch_size: case.gen_len for case in STANDARD.cases()}
    assert lengths == {1: 32, 4: 32, 16: 32, 32: 12, 64: 12, 96: 12}
    assert {SHORT.gen_len_of(requests) for requests in (1, SHORT.requests)} == {SHORT.gen_len}


# streams -------------------------------------------------------------------------------------------------------------


SHORT_STREAMS = StreamGrid(
    models={"few": lambda: few_large_experts(32, 2)},
    streams=({"label": "at-once"}, {"label": "over-time", "arrivals": "poisson:20/s", "priority": "longest"}),
    shared={
        "schedule": "cgopipe",
        "requests": 7,
        "prompt_lens": "lognormal:5,0.5",
        "most_prompt_tokens": 9,
        "gen_lens": "lognormal:3,0.5",
        "gen_len": 6,
        "arrivals": "at-once",
        "micro_batch_size": 2,
        "num_micro_batches": 2,
    },
)


@pytest.fixture(scope="module")
def streams(campaign):
    """Of the same machine, whose calibration is there."""
    made = Measurements(campaign.folder, SHORT_STREAMS, REPEATS, campaign.make_device, True, watches_speed=False)
    made.run()
    return made


@pytest.fixture(scope="module")
def stream_findings(streams):
    return analyse_streams(streams, SHORT_STREAMS)


def test_requests_of_a_stream_end_where_its_law_says_and_nobody_knows_before(streams):
    for case in SHORT_STREAMS.cases():
        for file in streams.traces(case):
            record = msgspec.convert(read_trace(file).metadata["stream"], StreamRecord)
            asked = [(one.prompt_tokens, one.generated_tokens) for one in case.stream.requests]
            assert [(one.request.prompt_tokens, one.request.generated_tokens) for one in record.requests] == asked
            assert {one.request.most_tokens for one in record.requests} == {6}
            assert len({generated for _, generated in asked}) > 2


def test_streams_are_predicted_with_a_clock_of_their_own(streams, stream_findings):
    assert [(run.case.label, len(run.order_errors)) for run in stream_findings.runs] == [
        ("at-once", REPEATS),
        ("over-time", REPEATS),
    ]
    for run in stream_findings.runs:
        assert run.steps_alike == run.steps
        assert run.error == pytest.approx(run.predicted_tokens_per_s / run.measured.median - 1)
        assert len(run.latencies) == 6
        case, (file, *_) = run.case, streams.traces(run.case)
        stream = RecordedStream.of(read_trace(file))
        setup = stream.setup(read_trace(file), streams.machine("few"))
        alone = StreamRun.of(setup, case.stream, stream.record.rules).result()
        assert run.predicted_steps == alone.num_steps
        first_s = case.stream.requests[0].arrival_ns / 1e9
        assert run.predicted_tokens_per_s == pytest.approx(alone.generated_tokens / (alone.total_s - first_s), rel=0.15)


def test_the_report_of_streams_names_each_and_misses_no_bar_silently(streams, stream_findings):
    write_streams(streams, stream_findings)
    text = (streams.folder / "report.md").read_text()
    numbers = json.loads((streams.folder / "report.json").read_text())
    assert faults("campaign-streams", numbers) == []
    assert (streams.folder / "latencies.png").read_bytes().startswith(b"\x89PNG")
    for case in SHORT_STREAMS.cases():
        assert text.count(case.name) >= 7
    for name, (_, question, bar) in ASKED.items():
        row = next(line for line in text.splitlines() if question + " |" in line)
        assert ("**missed**" in row) == (numbers["summary"][name] > bar)


def test_the_standard_streams_are_uneven_and_some_come_over_time():
    cases = STREAMS.cases()
    assert len({case.name for case in cases}) == len(cases) >= 6
    for case in cases:
        requests = case.stream.requests
        assert max(one.generated_tokens for one in requests) >= 3 * min(one.generated_tokens for one in requests)
        by_name(case.schedule)
    assert sum(case.stream.requests[-1].arrival_ns > 0 for case in cases) >= 2
