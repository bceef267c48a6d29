"""Trace files keep a trace exactly, obey viewers' rules and open in Perfetto; any other file gets one clear line."""

import gzip
import json
import tempfile
import time
import tracemalloc
from contextlib import contextmanager, suppress
from decimal import Decimal
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from perfetto_engine import OpenTrace
from trace_examples import NAMES, SIMULATED, span, traces, two_devices
from trace_rules import assert_content_obeys_rules, assert_obeys_rules, load

from traces.analysis import find_critical_path
from traces.errors import InputError
from traces.files import read_trace, write_trace
from traces.trace import MAX_NS, Trace


@contextmanager
def written(trace, name="trace.json"):
    """A file of the trace, for as long as the block lasts: hypothesis calls a test too often for one tmp_path."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        write_trace(trace, path)
        yield path


class TestRoundTrip:
    @pytest.mark.parametrize("name", ["trace.json", "trace.json.gz"])
    def test_reading_gives_back_what_was_written(self, tmp_path, name):
        write_trace(two_devices(), tmp_path / name)
        assert read_trace(tmp_path / name) == two_devices()

    @settings(max_examples=40, deadline=None)
    @given(traces(), st.sampled_from(["trace.json", "trace.json.gz"]))
    def test_it_is_exact_for_any_trace(self, trace, name):
        with written(trace, name) as path:
            assert read_trace(path) == trace

    @settings(max_examples=40, deadline=None)
    @given(traces(), st.sampled_from([None, 1, (",", ":")]))
    def test_it_does_not_depend_on_how_the_file_is_laid_out(self, trace, layout):
        with written(trace) as path:
            laid_out = {"separators": layout} if isinstance(layout, tuple) else {"indent": layout}
            path.write_text(json.dumps(json.loads(path.read_text()), sort_keys=True, **laid_out))
            assert read_trace(path) == trace

    def test_the_last_nanoseconds_of_the_longest_trace_survive(self, tmp_path):
        trace = Trace(SIMULATED, [span(n, start_ns=MAX_NS - 9 + n, end_ns=MAX_NS - 8 + n) for n in range(9)])
        write_trace(trace, tmp_path / "trace.json")
        assert read_trace(tmp_path / "trace.json") == trace
        reformatted = json.dumps(json.loads((tmp_path / "trace.json").read_text()))  # read by way of floats
        (tmp_path / "trace.json").write_text(reformatted)
        assert read_trace(tmp_path / "trace.json") == trace

    def test_what_another_program_has_added_is_passed_over(self, tmp_path):
        path = tmp_path / "trace.json"
        write_trace(two_devices(), path)
        content = json.loads(path.read_text())
        content["traceEvents"] += [{"ph": "i", "name": "look here", "ts": "soon"}]
        path.write_text(json.dumps(content))
        assert read_trace(path) == two_devices()


class TestWriting:
    @pytest.mark.parametrize("name", ["trace.json", "trace.json.gz"])
    def test_the_same_trace_gives_the_same_bytes(self, tmp_path, name, monkeypatch):
        write_trace(two_devices(), tmp_path / name)
        monkeypatch.setattr(time, "time", lambda: 2e9)
        write_trace(two_devices(), tmp_path / f"other-{name}")
        assert (tmp_path / name).read_bytes() == (tmp_path / f"other-{name}").read_bytes()

    def test_a_failure_leaves_the_file_that_was_there(self, tmp_path):
        path = tmp_path / "trace.json"
        path.write_text("precious")
        circle = Trace(SIMULATED, [span(0, "Attn", "CPU", cause=1), span(1, cause=0)])
        with pytest.raises(InputError, match="own cause"):
            write_trace(circle, path)
        assert path.read_text() == "precious"
        assert list(tmp_path.iterdir()) == [path]

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("trace.txt", "ends in .json or .json.gz"),
            ("missing/trace.json", "No such file"),
            ("taken.json", "directory"),
        ],
    )
    def test_a_name_that_cannot_be_written_is_named(self, tmp_path, name, said):
        (tmp_path / "taken.json").mkdir()
        with pytest.raises(InputError, match=said) as raised:
            write_trace(two_devices(), tmp_path / name)
        assert name in str(raised.value)
        assert list(tmp_path.iterdir()) == [tmp_path / "taken.json"]


def test_a_written_trace_obeys_the_rules(tmp_path):
    write_trace(two_devices(), tmp_path / "trace.json.gz")
    assert_obeys_rules(tmp_path / "trace.json.gz")


def _drop(phase, **wanted):
    """Drop the first event of a phase that has these values."""

    def change(events):
        events.remove(next(e for e in events if e["ph"] == phase and e.items() >= wanted.items()))

    return change


def _change(name, **changes):
    """Change the slice of this name."""

    def change(events):
        next(e for e in events if e["ph"] == "X" and e["name"] == name).update(changes)

    return change


@pytest.mark.parametrize(
    ("break_rule", "said"),
    [
        (_drop("M", name="process_name"), "not each process has its name"),
        (_drop("M", name="thread_name"), "not each thread has its name"),
        (_drop("M", name="thread_sort_index"), "not each thread has its name and its place"),
        (_drop("s"), "an arrow lacks an end"),
        (_change("PreAttn L0 m0", dur=Decimal("99.000")), "slices of .* overlap"),
        (_change("PreAttn L0 m0", dur=Decimal("1.00")), "has not three decimals"),
        (_change("PreAttn L0 m0", cat="cpu_op"), "PreAttn L0 m0 on GPU is a cpu_op"),
        (_change("PreAttn L0 m0", tid=77), "not each thread has its name"),
        (_change("PreAttn L0 m0", args={}), "PreAttn L0 m0 lacks"),
        (
            lambda events: events.append(events[-2] | {"id": 99}) or events.append(events[-2] | {"id": 99}),
            "critical path",
        ),
        (_drop("C", name="memory (bytes)"), "no memory counter of Host"),
    ],
)
def test_the_rules_catch_a_file_that_breaks_them(tmp_path, break_rule, said):
    write_trace(two_devices(), tmp_path / "trace.json")
    content = load(tmp_path / "trace.json")
    break_rule(content["traceEvents"])
    with pytest.raises(AssertionError, match=said):
        assert_content_obeys_rules(content)


class TestPyTorchProfilersDialect:
    """What libkineto writes, and tools for its traces look for."""

    @pytest.fixture
    def file(self, tmp_path):
        write_trace(two_devices(), tmp_path / "trace.json")
        return json.loads((tmp_path / "trace.json").read_text())

    def test_the_file_names_its_schema_devices_and_rank(self, file):
        assert file["schemaVersion"] == 1
        assert file["deviceProperties"] == [{"id": 0, "name": "gcp-2xt4"}, {"id": 1, "name": "gcp-2xt4"}]
        assert file["distributedInfo"] == {"rank": 0, "world_size": 2}

    @pytest.mark.parametrize(
        ("op", "category", "name"),
        [
            ("PreAttn", "kernel", "PreAttn L0 m0"),
            ("LoadWeights", "gpu_memcpy", "Memcpy HtoD LoadWeights L1 p0"),
            ("OffloadQKV", "gpu_memcpy", "Memcpy DtoH OffloadQKV L0 m0"),
            ("AllReduce", "kernel", "ncclKernel AllReduce L0 m0"),
            ("Attn", "cpu_op", "Attn L0 m0"),
        ],
    )
    def test_kinds_of_work_are_told_by_category_and_name(self, file, op, category, name):
        event = next(event for event in file["traceEvents"] if event["ph"] == "X" and event["args"]["op"] == op)
        assert (event["cat"], event["name"]) == (category, name)

    def test_a_copy_tells_its_stream_bytes_and_bandwidth(self, file):
        (copy,) = [e for e in file["traceEvents"] if e["name"] == "Memcpy HtoD LoadWeights L1 p0" and e["pid"] == 0]
        expected = {"device": 0, "stream": copy["tid"], "bytes": 8_400, "memory bandwidth (GB/s)": 12.0}
        assert copy["args"].items() >= expected.items()


class TestPerfetto:
    """What the engine of ui.perfetto.dev sees in the file."""

    @pytest.fixture(scope="class")
    @classmethod
    def opened(cls, tmp_path_factory):
        path = tmp_path_factory.mktemp("perfetto") / "trace.json.gz"
        write_trace(two_devices(), path)
        return OpenTrace(path)

    def test_it_finds_nothing_to_complain_about(self, opened):
        assert opened.query("select name, value from stats where severity != 'info' and value != 0") == []

    def test_it_shows_a_process_per_device_and_a_thread_per_lane(self, opened):
        tracks = opened.query(
            "select process.name as process, thread.name as thread "
            "from thread_track join thread using (utid) join process using (upid)"
        )
        devices = [(f"GPU {rank} (simulated)", lane) for rank in (0, 1) for lane in ("GPU", "H2D")]
        shared = [("GPU 0 (simulated)", "D2H"), ("GPU 0 (simulated)", "NET")]
        host = [("Host (simulated)", lane) for lane in ("CPU", "PIN", "PIN:1")]
        assert sorted(tracks) == sorted(devices + shared + host)

    def test_it_shows_every_span_with_its_name_times_and_args_side_by_side(self, opened):
        rows = opened.query(
            "select extract_arg(arg_set_id, 'args.id') as id, name, ts, dur, depth, "
            "extract_arg(arg_set_id, 'args.bytes') as bytes, extract_arg(arg_set_id, 'args.waited_for') as waited_for "
            "from slice"
        )
        expected = [
            (one.id, one.op, one.start_ns, one.duration_ns, 0, one.bytes, one.waited_for) for one in two_devices().spans
        ]
        assert sorted((row[0], *row[2:]) for row in rows) == [(row[0], *row[2:]) for row in expected]
        names = {row[0]: row[1] for row in rows}
        assert names[8] == "Experts L0 m0"
        assert names[4] == "Memcpy HtoD LoadWeights L1 p0"

    def test_it_shows_the_counters_of_memory_and_link(self, opened):
        rows = opened.query(
            "select process.name as process, track.name as track, ts, value from counter "
            "join process_counter_track as track on counter.track_id = track.id join process using (upid)"
        )
        assert ("GPU 1 (simulated)", "memory (bytes) device", 4_700, 8_407.0) in rows
        assert ("GPU 0 (simulated)", "link rate (bytes/s) H2D", 4_000, 12e9) in rows
        assert ("Host (simulated)", "memory (bytes) pinned", 0, 4_000.0) in rows
        assert len(rows) == sum(len(counter.values) for counter in two_devices().counters)

    def test_it_draws_arrows_along_the_critical_path(self, opened):
        rows = opened.query(
            "select extract_arg(cause.arg_set_id, 'args.id') as cause, extract_arg(span.arg_set_id, 'args.id') as span "
            "from flow join slice as cause on cause.id = slice_out join slice as span on span.id = slice_in"
        )
        assert sorted(rows) == [(1, 2), (2, 3), (3, 5), (5, 7), (7, 8)]

    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(traces(NAMES))
    def test_it_sees_any_trace_as_it_is(self, trace):
        with written(trace) as path:
            opened = OpenTrace(path)
        slices = opened.query("select extract_arg(arg_set_id, 'args.id') as id, ts, dur from slice")
        assert sorted(slices) == sorted((one.id, one.start_ns, one.duration_ns) for one in trace.spans)
        path = [one.id for one in find_critical_path(trace).spans if one.duration_ns]
        assert len(opened.query("select id from flow")) == len(list(pairwise(path)))
        assert opened.query("select name from stats where severity != 'info' and value != 0") == []


class TestFilesThatAreNotOurs:
    def refusal(self, path):
        with pytest.raises(InputError) as raised:
            read_trace(path)
        message = str(raised.value)
        assert message.startswith(f"{path}: ")
        assert "\n" not in message
        return message

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"", "truncated"),
            (b"hello", "not JSON: JSON is malformed: invalid character (byte 0)"),
            (b"[]", "Expected `object`, got `array`"),
            (b"{}", "neither a section 'cgopipe' nor any 'traceEvents'"),
            (b"{} {}", "trailing characters"),
            (b'{"a" 1}', "expected ':'"),
            (b"{1: 1}", "keys must be strings"),
            (b'{"a": 1', "truncated"),
            (b'{"a": "b', "truncated"),
            (b'{"a": tru}', "invalid character (byte 7)"),
            (b'{"a": NaN}', "invalid character (byte 6)"),
            (b'{"a": ' + b"[" * 100_000, "nested too deeply"),
            (b"\xff\xfe\x00", "not JSON"),
            (b'{"cgopipe": {"schema": "\xff"}}', "not text"),
            (b'{"cgopipe": {"schema": ' + b"9" * 5_000 + b"}}", "digits"),
            (b"\x1f\x8bgarbage", "damaged gzip"),
            (gzip.compress(b"{}" * 99, mtime=0)[:-9], "damaged gzip"),
            (b'{"traceEvents": 7}', "Expected `array`, got `int` - at `$.traceEvents`"),
            (b'{"schemaVersion": 1, "traceEvents": [{"ph": "X"}]}', "neither a trace of this project nor a PyTorch"),
            (b'{"cgopipe": 3}', "cgopipe.schema is 3: this version reads schema 1"),
            (b'{"cgopipe": {"schema": 2}}', "cgopipe.schema is 2"),
            (b'{"cgopipe": {"schema": 1, "metadata": {}}}', "lacks a usable 'metadata' or 'host_pid'"),
            (b'{"cgopipe": {"schema": 1, "metadata": {}, "host_pid": 1}}', "metadata.origin is None"),
        ],
    )
    def test_they_get_one_line_that_says_what_is_wrong(self, tmp_path, content, said):
        path = tmp_path / "trace.json"
        path.write_bytes(content)
        assert said in self.refusal(path)

    @pytest.mark.parametrize(
        ("old", "new", "said"),
        [
            ('"bytes":64,', "", "missing required field `bytes` - at `$.args`"),
            ('"bytes":64,', '"bytes":"64",', "Expected `int`, got `str` - at `$.args.bytes`"),
            ('"bytes":64,', '"bytes":true,', "Expected `int`, got `bool`"),
            ('"bytes":64,', '"bytes":-64,', "none may be negative"),
            ('"dur":1.001', '"dur":"1"', "malformed"),
            ('"dur":1.001', '"dur":1e999', "malformed"),
            ('"dur":1.001', '"dur":9.001', "a lane does one thing at a time"),
            ('"ts":0.000,"dur":1.001', '"dur":1.001', "missing required field `ts`"),
            ('"id":1,', '"id":2,', "2 spans have the id 2"),
            ('"cause":1,', '"cause":77,', "no span's id"),
            ('"name": "GPU"', '"name": "TPU"', "lane 'TPU'"),
            ('"name": "PIN:1"', '"name": "PIN:x"', "malformed"),
            ('"name": "thread_name"', '"name": "thread"', "its thread has no name"),
            ('"device": 7', '"device": "7"', "Expected `int | float`, got `str` - at `$.args[...]`"),
            ('"traceEvents": [', '"traceEvents": [7, ', "malformed"),
        ],
    )
    def test_damage_to_an_event_is_named(self, tmp_path, old, new, said):
        path = tmp_path / "trace.json"
        write_trace(two_devices(), path)
        content = path.read_text()
        assert old in content
        path.write_text(content.replace(old, new))
        assert said in self.refusal(path)

    def test_a_file_that_is_not_there_is_named(self, tmp_path):
        assert "No such file" in self.refusal(tmp_path / "none.json")
        assert "directory" in self.refusal(tmp_path)

    @settings(max_examples=40, deadline=None)
    @given(st.data())
    def test_no_damage_does_anything_else(self, data):
        with written(two_devices(), data.draw(st.sampled_from(["trace.json", "trace.json.gz"]))) as path:
            content = bytearray(path.read_bytes())
            for _ in range(data.draw(st.integers(1, 3))):
                at = data.draw(st.integers(0, len(content) - 1))
                content[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
            path.write_bytes(content)
            with suppress(InputError):
                read_trace(path)


def test_reading_takes_the_memory_of_the_spans_and_of_their_text_and_not_of_decoded_json(tmp_path):
    path = tmp_path / "trace.json"
    write_trace(Trace(SIMULATED, [span(n, start_ns=n, end_ns=n + 1) for n in range(20_000)]), path)
    tracemalloc.start()
    try:
        trace = read_trace(path)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(trace.spans) == 20_000
    assert kept < path.stat().st_size * 1.5
    assert peak < kept + path.stat().st_size * 1.5
