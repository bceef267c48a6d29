"""Trace files: Chrome trace-event JSON (`.json`, `.json.gz`), which ui.perfetto.dev and chrome://tracing open.

A process per device and one for the host, a thread per lane, a slice per span, counters for memories and links, and
arrows along the critical path. Where the PyTorch profiler has a word for something, the file uses it (`cat` kernel and
gpu_memcpy, names that begin with "Memcpy HtoD", `device`, `stream`, `correlation`, `memory bandwidth (GB/s)`), so that
its tools read the file too. Source: the Trace Event Format, and libkineto's output_json.cpp.

Reading gives back what was written, to the nanosecond.
"""

import gzip
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import islice, pairwise
from json.encoder import encode_basestring as quoted
from pathlib import Path
from typing import Any, NamedTuple

from traces.analysis import find_critical_path
from traces.errors import InputError
from traces.files.document import EVENTS, SCHEMA, SECTION
from traces.files.text_files import appearing
from traces.trace import DEVICE_LANES, HOST_LANES, NONE, LaneId, Span, Trace, lane_name

_CATEGORY = {"GPU": "kernel", "NET": "kernel", "H2D": "gpu_memcpy", "D2H": "gpu_memcpy"}
_NAME_PREFIX = {"H2D": "Memcpy HtoD ", "D2H": "Memcpy DtoH ", "NET": "ncclKernel "}
_FIRST_TID = 100  # Perfetto shows it behind the lane's name, and `GPU 1` would look like a device
_LINES_PER_WRITE = 4096
_GZIP_LEVEL = 4


def write_trace(trace: Trace, path: str | os.PathLike[str]) -> None:
    """Write the trace. The same trace gives the same bytes; a file already there is replaced at once or not at all.

    Raises InputError if the name ends in neither .json nor .json.gz, or the file cannot be written.
    """
    target = Path(path)
    if not target.name.endswith((".json", ".json.gz")):
        raise InputError(f"{target}: the name of a trace file ends in .json or .json.gz")
    try:
        with appearing(target) as unfinished, unfinished.open("wb") as raw, ExitStack() as stack:
            gzipped = target.name.endswith(".gz")
            out = stack.enter_context(gzip.GzipFile("", "wb", _GZIP_LEVEL, raw, mtime=0)) if gzipped else raw
            lines = _lines(trace)
            while batch := "".join(islice(lines, _LINES_PER_WRITE)):
                out.write(batch.encode())
    except OSError as error:
        raise InputError(f"{target}: cannot be written: {error.strerror or error}") from error
    except UnicodeEncodeError as error:
        wrong = error.object[error.start :][:9]
        raise InputError(f"{target}: cannot be written: {wrong!r} in it is no text") from error


class _Track(NamedTuple):
    """A lane as the file shows it: a thread of its device's process, or of the host's."""

    pid: int
    tid: int


def _track(lane: LaneId, host_pid: int) -> _Track:
    kind, rank = lane
    if kind in DEVICE_LANES:
        return _Track(pid=rank, tid=_FIRST_TID + DEVICE_LANES.index(kind))
    return _Track(pid=host_pid, tid=_FIRST_TID + HOST_LANES.index(kind) + rank * len(HOST_LANES))


def _lines(trace: Trace) -> Iterator[str]:
    """The file, one event a line."""
    ranks = {rank for kind, rank in trace.lanes() if kind in DEVICE_LANES}
    devices = sorted(ranks | {counter.rank for counter in trace.counters if counter.rank != NONE})
    host_pid = 1 + max(devices, default=NONE)  # a device's pid is its rank
    hardware = trace.metadata.get("hardware", "unknown")
    name = hardware.get("name", "unknown") if isinstance(hardware, dict) else hardware
    head: dict[str, Any] = {
        "schemaVersion": 1,  # of the PyTorch profiler
        "displayTimeUnit": "ns",
        SECTION: {"schema": SCHEMA, "host_pid": host_pid, "metadata": trace.metadata},
        "deviceProperties": [{"id": rank, "name": str(name)} for rank in devices],
        "distributedInfo": {"rank": 0, "world_size": len(devices)},
    }
    yield "{\n"
    for key, value in head.items():
        yield f"{quoted(key)}: {_json(value)},\n"
    yield f"{quoted(EVENTS)}: [\n"
    events = _events(trace, host_pid)
    yield next(events, "")
    for event in events:
        yield f",\n{event}"
    yield "\n]\n}\n"


def _events(trace: Trace, host_pid: int) -> Iterator[str]:
    tracks = {lane: _track(lane, host_pid) for lane in trace.lanes()}
    yield from _names(trace, tracks, host_pid)
    yield from _slices(trace.spans, tracks)
    for counter in trace.counters:
        pid = host_pid if counter.rank == NONE else counter.rank
        start = f'{{"ph":"C","name":{quoted(counter.name)},"pid":{pid},"ts":{_us(counter.time_ns)}'
        yield f'{start},"args":{_json(dict(counter.values))}}}'
    yield from _arrows(trace, tracks)


def _names(trace: Trace, tracks: dict[LaneId, _Track], host_pid: int) -> Iterator[str]:
    def metadata(what: str, pid: int, tid: int, argument: str, value: str | int) -> str:
        return _json({"ph": "M", "name": what, "pid": pid, "tid": tid, "args": {argument: value}})

    processes = {track.pid for track in tracks.values()}
    processes |= {host_pid if counter.rank == NONE else counter.rank for counter in trace.counters}
    for pid in sorted(processes):
        name = "Host" if pid == host_pid else f"GPU {pid}"
        yield metadata("process_name", pid, 0, "name", f"{name} ({trace.origin})")
        yield metadata("process_labels", pid, 0, "labels", trace.origin)
        yield metadata("process_sort_index", pid, 0, "sort_index", pid)
    for lane, track in tracks.items():
        name = lane_name(lane) if lane[0] in HOST_LANES else lane[0]
        yield metadata("thread_name", track.pid, track.tid, "name", name)
        yield metadata("thread_sort_index", track.pid, track.tid, "sort_index", track.tid)


def _slices(spans: Iterable[Span], tracks: dict[LaneId, _Track]) -> Iterator[str]:
    opening = {
        lane: f'{{"ph":"X","cat":"{_CATEGORY.get(lane[0], "cpu_op")}","pid":{track.pid},"tid":{track.tid},'
        for lane, track in tracks.items()
    }
    for span in spans:
        _, op, kind, rank, step, layer, micro_batch, page, start_ns, end_ns, moved, flops, *_ = span
        yield (
            f'{opening[kind, rank]}"name":{quoted(_name(span))},"ts":{_us(start_ns)},"dur":{_us(end_ns - start_ns)},'
            f'"args":{{"id":{span.id},"op":{quoted(op)},"step":{step},"layer":{layer},"micro_batch":{micro_batch},'
            f'"page":{page},"bytes":{moved},"flops":{flops},"bound":{quoted(span.bound)},'
            f'"waited_for":{quoted(span.waited_for)},"cause":{span.cause}{_profiler_args(span, tracks)}}}}}'
        )


def _name(span: Span) -> str:
    """What a person reads on the slice, such as `PostAttn L3 m2`."""
    name = _NAME_PREFIX.get(span.lane, "") + span.op
    if span.layer != NONE:
        name += f" L{span.layer}"
    if span.micro_batch != NONE:
        name += f" m{span.micro_batch}"
    return name if span.page == NONE else f"{name} p{span.page}"


def _profiler_args(span: Span, tracks: dict[LaneId, _Track]) -> str:
    """What the PyTorch profiler says of work on a device."""
    if span.lane in HOST_LANES:
        return ""
    args = f',"device":{span.rank},"stream":{tracks[span.lane, span.rank].tid},"correlation":{span.id}'
    if _CATEGORY[span.lane] != "gpu_memcpy":
        return args
    rate = span.bytes / span.duration_ns if span.duration_ns else '"N/A"'  # bytes a nanosecond are gigabytes a second
    return f'{args},"memory bandwidth (GB/s)":{rate}'


def _arrows(trace: Trace, tracks: dict[LaneId, _Track]) -> Iterator[str]:
    """An arrow from each slice of the critical path to the next. Viewers cannot tie one to a slice of no length."""
    path = [span for span in find_critical_path(trace).spans if span.duration_ns > 0]
    for number, (cause, span) in enumerate(pairwise(path)):
        leaves_ns = max(cause.start_ns, min(cause.end_ns - 1, span.start_ns))  # a viewer looks for a slice around it
        common = f'"cat":"critical_path","name":"critical path","id":{number}'
        for phase, place, time_ns in (('"s"', cause, leaves_ns), ('"f","bp":"e"', span, span.start_ns)):
            track = tracks[place.lane, place.rank]
            yield f'{{"ph":{phase},{common},"pid":{track.pid},"tid":{track.tid},"ts":{_us(time_ns)}}}'


def _json(value: object) -> str:
    """The same text for the same value. Not in ASCII: Perfetto shows escapes as they are, and refuses some."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _us(time_ns: int) -> str:
    return f"{time_ns // 1000}.{time_ns % 1000:03d}"
