"""Reads a run of the engine from a PyTorch profile: Kineto's Chrome trace JSON, `.json` or `.json.gz`.

While a profiler runs, the engine puts a range around each batch and each task and gives it a name from this module; the
profile then says which task each moment belongs to. On an emulated device a task lasts as long as its range. On a GPU a
range only covers the launches: a task on a device's lane lasts from the first to the last kernel or copy launched in
its range, found by the correlation id that a launch (`cuda_runtime`, `cuda_driver`) shares with the work on the device
(`kernel`, `gpu_memcpy`, `gpu_memset`).

That second part is written from the format that Kineto documents in its source (libkineto: output_json.cpp,
CuptiActivity.cpp) and tested on files made by hand in that format. It has not been tried on a GPU.
"""

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter
from typing import NamedTuple

from msgspec import Raw, Struct
from msgspec.json import Decoder

from traces.analysis import DEPENDENCY, cause_of
from traces.errors import InputError
from traces.files.document import Document, nanoseconds, take_each
from traces.trace import DEVICE_LANES, NONE, Key, LaneId, Span, Trace

PREFIX = "cgopipe::"  # of the names of the engine's ranges
HOW_TO_PROFILE = (
    "run engine.run inside torch.profiler.profile(experimental_config=_ExperimentalConfig(profile_all_threads=True))"
)
_BATCH = re.compile(rf"{PREFIX}batch of (.+)")
_TASK = re.compile(
    rf"{PREFIX}(\S+) s=(-?\d+) l=(-?\d+) m=(-?\d+) p=(-?\d+) lane=(\w+) rank=(\d+) id=(\d+) deps=([\d,]*)"
)
_ENDED = re.compile(rf"{PREFIX}ended id=(\d+) bytes=(\d+)")

_Thread = tuple[int | str, int | str]


def batch_range(origin: str) -> str:
    """The name of the range around all tasks of a batch, run on a device of this origin."""
    return f"{PREFIX}batch of {origin}"


def task_range(id: int, key: Key, lane: str, deps: Iterable[int]) -> str:
    """The name of the range around a task's work."""
    op, rank, step, layer, micro_batch, page = key
    where = f"s={step} l={layer} m={micro_batch} p={page} lane={lane} rank={rank}"
    return f"{PREFIX}{op} {where} id={id} deps={','.join(map(str, deps))}"


def ended_range(id: int, num_bytes: int) -> str:
    """The name of the empty range that follows a task which did something: how many bytes it moved."""
    return f"{PREFIX}ended id={id} bytes={num_bytes}"


def profiled_trace(document: Document) -> Trace:
    """The first batch that a profile holds, from 0 ns. Metadata: origin, and how many `batches` the profile holds.

    Raises InputError that says what is wrong if something is damaged, or no task is there.
    """
    profile = _Profile()
    take_each(document.events, profile.take)
    return profile.trace()


class _Kind(Struct):
    ph: str
    cat: str = ""


class _Range(Struct):
    name: str
    pid: int | str
    tid: int | str
    ts: float
    dur: float


class _LaunchArgs(Struct):
    correlation: int = NONE


class _Launch(Struct):
    pid: int | str
    tid: int | str
    ts: float
    args: _LaunchArgs


class _DeviceWorkArgs(Struct):
    correlation: int


class _DeviceWork(Struct):
    ts: float
    dur: float
    args: _DeviceWorkArgs


_decode_kind = Decoder(_Kind).decode
_DECODE: dict[str, Callable[[Raw], _Range | _Launch | _DeviceWork]] = {
    "user_annotation": Decoder(_Range).decode,
    **dict.fromkeys(("cuda_runtime", "cuda_driver"), Decoder(_Launch).decode),
    **dict.fromkeys(("kernel", "gpu_memcpy", "gpu_memset"), Decoder(_DeviceWork).decode),
}
"""How to read a complete event of each category that matters."""


class _Task(NamedTuple):
    """A task's range on its host thread."""

    id: int
    key: Key
    lane: str
    deps: tuple[int, ...]
    thread: _Thread
    start_ns: int
    end_ns: int


class _Profile:
    """What one file holds, as far as it concerns the engine."""

    def __init__(self) -> None:
        self._batches: list[tuple[int, int, str]] = []  # start, end, origin
        self._tasks: list[_Task] = []
        self._ended: list[tuple[int, int, int]] = []  # time, id, bytes
        self._launches: dict[int, tuple[_Thread, int]] = {}  # correlation -> thread, time
        self._device_work: list[tuple[int, int, int]] = []  # correlation, start, end

    def take(self, raw: Raw) -> None:
        kind = _decode_kind(raw)
        if kind.ph != "X" or kind.cat not in _DECODE:
            return
        match _DECODE[kind.cat](raw):
            case _Range() as event if event.name.startswith(PREFIX):
                self._take_range(event)
            case _Launch() as event:
                self._launches[event.args.correlation] = ((event.pid, event.tid), nanoseconds(event.ts))
            case _DeviceWork() as event:
                self._device_work.append((event.args.correlation, *_interval(event)))

    def _take_range(self, event: _Range) -> None:
        start_ns, end_ns = _interval(event)
        if found := _TASK.fullmatch(event.name):
            op, step, layer, micro_batch, page, lane, rank, id_, deps = found.groups()
            key = (op, int(rank), int(step), int(layer), int(micro_batch), int(page))
            waits = tuple(map(int, deps.split(","))) if deps else ()
            self._tasks.append(_Task(int(id_), key, lane, waits, (event.pid, event.tid), start_ns, end_ns))
        elif found := _ENDED.fullmatch(event.name):
            self._ended.append((start_ns, int(found[1]), int(found[2])))
        elif found := _BATCH.fullmatch(event.name):
            self._batches.append((start_ns, end_ns, found[1]))
        else:
            raise ValueError("a range that this version does not know")

    def trace(self) -> Trace:
        if not self._batches:
            raise InputError(
                f"it is neither a trace of this project nor a PyTorch profile of a run of the engine, whose ranges are "
                f"named {PREFIX}…; for such a profile {HOW_TO_PROFILE}"
            )
        begin_ns, end_ns, origin = min(self._batches)
        moved = {id_: num_bytes for time_ns, id_, num_bytes in self._ended if begin_ns <= time_ns <= end_ns}
        tasks = [task for task in self._tasks if begin_ns <= task.start_ns <= end_ns and task.id in moved]
        if not tasks:
            raise InputError(f"it is a PyTorch profile that holds a batch but none of its tasks: {HOW_TO_PROFILE}")
        tasks.sort(key=attrgetter("id"))
        times = {task.id: (task.start_ns, task.end_ns) for task in tasks}
        if origin.startswith("real GPU"):
            times |= self._device_times(tasks)
        times, clipped_ns = _one_after_another(tasks, times)
        metadata = {"origin": origin, "source": "PyTorch profiler", "batches": len(self._batches)}
        if clipped_ns:
            metadata["clipped_ns"] = clipped_ns
        return Trace(metadata, list(_spans(tasks, times, moved)))

    def _device_times(self, tasks: list[_Task]) -> dict[int, tuple[int, int]]:
        """When each task on a device's lane really ran: from the first to the last of what it launched."""
        work = self._work_of(tasks)
        if not work:
            raise InputError("it holds no work of the GPU: profile with ProfilerActivity.CUDA among the activities")
        times = {}
        for task in tasks:
            if task.lane in DEVICE_LANES:  # where it launched nothing, the end of its range
                starts_ns, ends_ns = zip(*(work[task.id] or [(task.end_ns, task.end_ns)]), strict=True)
                times[task.id] = (min(starts_ns), max(ends_ns))
        return times

    def _work_of(self, tasks: list[_Task]) -> defaultdict[int, list[tuple[int, int]]]:
        """The intervals of device work by the task whose range its launch lies in."""
        ranges: defaultdict[_Thread, list[_Task]] = defaultdict(list)
        for task in sorted(tasks, key=attrgetter("start_ns")):
            ranges[task.thread].append(task)
        found: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
        for correlation, start_ns, end_ns in self._device_work:
            thread, time_ns = self._launches.get(correlation, ((NONE, NONE), NONE))
            here = ranges.get(thread, [])
            at = bisect_right(here, time_ns, key=attrgetter("start_ns")) - 1
            if at >= 0 and time_ns <= here[at].end_ns:
                found[here[at].id].append((start_ns, end_ns))
        return found


def _one_after_another(tasks: list[_Task], times: dict[int, tuple[int, int]]) -> tuple[dict[int, tuple[int, int]], int]:
    """The times without overlaps on a lane, which works in order, and how much was clipped off in all.

    Rounding makes overlaps of a nanosecond; clocks of a device and its host that differ could make longer ones.
    """
    free_at: dict[LaneId, int] = {}
    in_order = {}
    clipped_ns = 0
    for task in tasks:
        lane = (task.lane, task.key[1])
        start_ns, end_ns = times[task.id]
        begins_ns = max(start_ns, free_at.get(lane, start_ns))
        free_at[lane] = max(end_ns, begins_ns)
        in_order[task.id] = (begins_ns, free_at[lane])
        clipped_ns += max(0, min(begins_ns, end_ns) - start_ns)
    return in_order, clipped_ns


def _spans(tasks: list[_Task], times: dict[int, tuple[int, int]], moved: dict[int, int]) -> Iterator[Span]:
    first_ns, _ = min(times.values())
    ends_ns = {id_: end_ns for id_, (_, end_ns) in times.items()}
    before: dict[LaneId, int] = {}
    for task in tasks:
        op, rank, step, layer, micro_batch, page = task.key
        lane = (task.lane, rank)
        start_ns, end_ns = times[task.id]
        last = before.get(lane, NONE)
        cause = cause_of(start_ns, task.deps, last, ends_ns)
        before[lane] = task.id
        yield Span(
            task.id, op, *lane, step, layer, micro_batch, page, start_ns - first_ns, end_ns - first_ns,
            bytes=moved[task.id], waited_for="" if cause in (last, NONE) else DEPENDENCY, cause=cause,
        )  # fmt: skip


def _interval(event: _Range | _DeviceWork) -> tuple[int, int]:
    start_ns = nanoseconds(event.ts)
    return start_ns, start_ns + nanoseconds(event.dur)
