"""What the traces of a campaign over streams say: order of work, durations, and each stream predicted before it runs.

The prediction knows the requests, after how many tokens each ends, when it comes, by which rules it is let in, and the
machine from the calibration; it has its own clock, so that requests may meet in other steps than they did. As in the
engine a request has its token when the head of its micro-batch has ended, which is before the end of the step.
"""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sim.simulation import RequestTimes, record_stream
from traces.files import read_trace
from validation.campaign.measurements import Measurements
from validation.campaign.streams.cases import ALL_STEPS, StreamCase, StreamGrid
from validation.metrics import Spread, relative_error, spread_of
from validation.replay import LatencyCheck, RecordedStream, Replay, latency_checks, replay_trace, times_in


@dataclass(frozen=True, slots=True)
class StreamCaseResult:
    """One stream. Tokens per second; errors are shares of what was measured, medians over the repeats.

    `order_errors` replay each repeat's own durations. `replay_errors` are those of the time that the cost model says of
    the steps as they were; `error` is that of the throughput of a prediction with its own clock.
    """

    case: StreamCase
    measured: Spread
    predicted_tokens_per_s: float
    error: float
    order_errors: tuple[float, ...]
    handed_over_errors: tuple[float, ...]
    replay_errors: tuple[float, ...]
    duration_wape: float
    steps: int
    steps_alike: int
    predicted_steps: int
    latencies: tuple[LatencyCheck, ...]


@dataclass(frozen=True, slots=True)
class StreamFindings:
    """All streams. `missing` lists runs that have not been made."""

    origin: str
    repeats: int
    runs: tuple[StreamCaseResult, ...]
    missing: tuple[str, ...]

    @property
    def summary(self) -> dict[str, float]:
        """Each question in one number."""
        latencies = [abs(one.error) for run in self.runs for one in run.latencies]
        return {
            "order_worst": max(abs(error) for run in self.runs for error in run.order_errors),
            "order_worst_with_hand_over": max(abs(error) for run in self.runs for error in run.handed_over_errors),
            "replay_median": statistics.median(abs(error) for run in self.runs for error in run.replay_errors),
            "throughput_median": statistics.median(abs(run.error) for run in self.runs),
            "throughput_worst": max(abs(run.error) for run in self.runs),
            "latency_median": statistics.median(latencies),
            "latency_worst": max(latencies),
            "steps_alike": sum(run.steps_alike for run in self.runs) / sum(run.steps for run in self.runs),
        }

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON values."""
        runs = [{**asdict(one), "case": {**asdict(one.case), "name": one.case.name}} for one in self.runs]
        return {"summary": self.summary, "origin": self.origin, "repeats": self.repeats, "runs": runs} | {
            "missing": list(self.missing)
        }


def analyse_streams(campaign: Measurements, grid: StreamGrid) -> StreamFindings:
    """Replay every trace and predict every stream. Cases without a trace are listed as missing."""
    results, missing, origin = [], [], ""
    for case in grid.cases():
        machine = campaign.machine(case.model)
        replays = [replay_trace(read_trace(file), machine) for file in campaign.traces(case)]
        if len(replays) < campaign.repeats:
            missing.append(f"{case.name}: {campaign.repeats - len(replays)} of {campaign.repeats} repeats")
        if replays:
            origin = replays[0].measured.origin
            results.append(_result(case, replays))
    return StreamFindings(origin, campaign.repeats, tuple(results), tuple(missing))


def _result(case: StreamCase, replays: Sequence[Replay]) -> StreamCaseResult:
    streams = [RecordedStream.of(one.measured) for one in replays]
    measured = [[one.times for one in stream.record.requests if one.times is not None] for stream in streams]
    predicted, num_steps = predicted_times(case, streams[0], replays[0])
    speeds = spread_of([served_tokens_per_s(times) for times in measured])
    checks = [one.stream_check for one in replays if one.stream_check is not None]
    layers = [one.run_check for one in replays if one.run_check is not None]
    return StreamCaseResult(
        case,
        speeds,
        served_tokens_per_s(predicted),
        relative_error(served_tokens_per_s(predicted), speeds.median),
        tuple(one.order_check.error for one in replays),
        tuple(error for one in replays if (error := one.order_check.error_with_hand_over) is not None),
        tuple(layer.run.error for layer in layers),
        statistics.median(one.duration_check.wape for one in replays if one.duration_check is not None),
        sum(check.steps for check in checks),
        sum(check.steps_alike for check in checks),
        num_steps,
        _latencies(measured, predicted),
    )


def predicted_times(case: StreamCase, stream: RecordedStream, replay: Replay) -> tuple[list[RequestTimes], int]:
    """Of all requests, and in how many steps: by a clock of its own, from the machine alone."""
    assert replay.hardware is not None
    setup = stream.setup(replay.measured, replay.hardware)
    trace = record_stream(setup, case.stream, stream.record.rules, {}, ALL_STEPS)
    record = RecordedStream.of(trace).record
    return times_in(trace, record), len(record.steps)


def served_tokens_per_s(times: Sequence[RequestTimes]) -> float:
    """From when the first request came to the last token."""
    span_ns = max(one.end_ns for one in times) - min(one.arrival_ns for one in times)
    return sum(one.num_tokens for one in times) / (span_ns / 1e9)


def _latencies(
    repeats: Sequence[Sequence[RequestTimes]], predicted: Sequence[RequestTimes]
) -> tuple[LatencyCheck, ...]:
    """Predicted beside the median of the repeats."""
    each = [latency_checks(measured, predicted) for measured in repeats]
    found = []
    for checks in zip(*each, strict=True):
        measured_s = statistics.median(one.measured_s for one in checks)
        first = checks[0]
        error = relative_error(first.predicted_s, measured_s)
        found.append(LatencyCheck(first.measure, first.quantile, measured_s, first.predicted_s, error))
    return tuple(found)
