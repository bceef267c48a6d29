"""A PyTorch profile of a run holds the run's own trace again; on a GPU, a task lasts as long as what it launched."""

import gzip
import json
import statistics

import pytest
import torch
from engine_models import PROMPTS, make
from torch._C._profiler import _ExperimentalConfig
from torch.autograd import profiler
from torch.profiler import ProfilerActivity, profile

import engine
from engine.device import EmulatedDevice
from engine.lanes import Executor
from sim.schedule import CPU, GPU, H2D, Op, Task
from traces.errors import InputError
from traces.files import batch_range, ended_range, read_trace, task_range

CLOCK_NS = 20_000
"""The profiler's clock (the processor's counter, converted) against the engine's."""


def profiled(run, path, **options):
    """What `run` returns; a profile of it lies at `path`."""
    config = _ExperimentalConfig(**{"profile_all_threads": True, **options})
    with profile(activities=[ProfilerActivity.CPU], experimental_config=config) as seen:
        result = run()
    seen.export_chrome_trace(str(path))
    return result


@pytest.fixture
def device():
    with EmulatedDevice(None, None, 1 << 20) as made:
        yield made


# a real profile ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["run.json", "run.json.gz"])
def test_a_profile_of_a_run_holds_the_runs_own_tasks_for_as_long_as_they_took(tmp_path, name):
    def run():
        return engine.run(make("mixtral"), PROMPTS, micro_batch_size=3, max_new_tokens=3, device="emulated")

    run()  # what is compiled or loaded on first use is not profiled
    own = profiled(run, tmp_path / name).trace
    seen = read_trace(tmp_path / name)
    assert seen.origin == own.origin == "emulated device"
    ours, theirs = {one.key: one for one in own.spans}, {one.key: one for one in seen.spans}
    assert theirs.keys() == ours.keys()
    assert len(ours) == len(own.spans) == len(seen.spans)
    longer_ns = []
    for key, one in ours.items():
        again = theirs[key]
        assert (again.id, again.lane, again.bytes) == (one.id, one.lane, one.bytes)
        longer_ns.append(one.duration_ns - again.duration_ns)
    assert min(longer_ns) >= -CLOCK_NS, "a range outlasts the task that it lies in"
    assert statistics.median(longer_ns) < 2e6
    assert statistics.median(one.duration_ns for one in seen.spans) > 0
    same_cause = sum(theirs[key].cause == one.cause for key, one in ours.items())
    assert same_cause >= 0.9 * len(ours)


def test_a_task_that_had_nothing_to_do_is_not_in_the_profile(tmp_path, device):
    tasks = [Task(n, Op.HEAD, GPU, 0, micro_batch=n) for n in range(3)]
    profiled(
        lambda: Executor(device, [tasks], [GPU], lambda lane, task: None if task.id == 1 else 7).run(),
        tmp_path / "run.json",
    )
    assert [(one.id, one.bytes) for one in read_trace(tmp_path / "run.json").spans] == [(0, 7), (2, 7)]


def test_of_several_batches_the_first_is_read(tmp_path, device):
    def run():
        for num_bytes in (1, 2):
            tasks = [Task(0, Op.PIN_WEIGHTS, H2D, 0), Task(1, Op.ATTN, CPU, 0, deps=(0,))]
            Executor(device, [tasks], [H2D, CPU], lambda lane, task, n=num_bytes: n).run()

    profiled(run, tmp_path / "run.json")
    trace = read_trace(tmp_path / "run.json")
    assert trace.metadata["batches"] == 2
    assert [(one.op, one.bytes, one.cause, one.waited_for) for one in trace.spans] == [
        ("PinWeights", 1, -1, ""),
        ("Attn", 1, 0, "dependency"),
    ]


def test_a_profile_of_the_calling_thread_alone_says_how_to_profile_the_others(tmp_path, device):
    profiled(
        lambda: Executor(device, [[Task(0, Op.HEAD, GPU, 0)]], [GPU], lambda lane, task: 0).run(),
        tmp_path / "run.json",
        profile_all_threads=False,
    )
    with pytest.raises(InputError, match=r"run\.json: .*none of its tasks.*profile_all_threads=True"):
        read_trace(tmp_path / "run.json")


def test_without_a_profiler_no_range_is_made(device, monkeypatch):
    def refuse(name):
        raise AssertionError(f"{name} is recorded")

    monkeypatch.setattr(profiler, "record_function", refuse)
    assert not torch.autograd.profiler._is_profiler_enabled
    assert len(Executor(device, [[Task(0, Op.HEAD, GPU, 0)]], [GPU], lambda lane, task: 0).run()) == 1


# files made by hand, in the format that Kineto's output_json.cpp and CuptiActivity.cpp write -----------------------


def event(category, name, ts, dur, tid=1, pid=77, **args):
    return {"ph": "X", "cat": category, "name": name, "pid": pid, "tid": tid, "ts": ts, "dur": dur, "args": args}


def task(id, op, lane, ts, dur, tid, deps=(), micro_batch=0, num_bytes=0):
    """A task's range and the mark behind it."""
    name = task_range(id, (op, 0, 1, 2, micro_batch, -1), lane, deps)
    return [
        event("user_annotation", name, ts, dur, tid, **{"External id": 100 + id, "Ev Idx": id}),
        event("user_annotation", ended_range(id, num_bytes), ts + dur, 0.5, tid),
    ]


def launch(correlation, ts, tid, category="cuda_runtime"):
    name = {"cuda_runtime": "cudaLaunchKernel", "cuda_driver": "cuLaunchKernel"}[category]
    return event(category, name, ts, 2.0, tid, cbid=211, correlation=correlation)


def kernel(correlation, ts, dur, stream=7):
    args = {"queued": 0, "device": 0, "context": 1, "stream": stream, "correlation": correlation, "grid": [1, 1, 1]}
    return event("kernel", "gemm<float>(...)", ts, dur, stream, pid=0, **args)


def memcpy(correlation, ts, dur, num_bytes, stream=20):
    args = {"device": 0, "stream": stream, "correlation": correlation, "bytes": num_bytes}
    rate = {"memory bandwidth (GB/s)": num_bytes / dur / 1000}
    return event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", ts, dur, stream, pid=0, **args, **rate)


def gpu_run():
    """A copy, what needs it, and attention on the host; each launch is over long before its work is."""
    return [
        event("user_annotation", batch_range("real GPU (NVIDIA T4)"), 1000.0, 1000.0, tid=1),
        *task(0, "LoadWeights", "H2D", 1010.0, 5.0, tid=2, num_bytes=4096),
        launch(31, 1011.0, tid=2),
        memcpy(31, 1020.0, 100.0, 4096),
        *task(1, "PostAttn", "GPU", 1012.0, 20.0, tid=3, deps=(0,)),
        launch(32, 1013.0, tid=3),
        launch(33, 1025.0, tid=3, category="cuda_driver"),
        kernel(32, 1121.5, 50.0),
        kernel(33, 1180.0, 19.25),
        *task(2, "Attn", "CPU", 1200.0, 30.0, tid=4, deps=(1,), micro_batch=1),
        *task(3, "Head", "GPU", 1240.0, 3.0, tid=3, deps=(2,)),
        launch(34, 1400.0, tid=3),
        kernel(34, 1410.0, 5.0),
        event("cpu_op", "aten::mm", 1013.0, 1.0, tid=3),
        event("cuda_runtime", "cudaDeviceSynchronize", 1300.0, 1.0, tid=1, cbid=165),
        {"ph": "s", "cat": "ac2g", "id": 32, "pid": 77, "tid": 3, "ts": 1013.0, "name": "ac2g"},
        {"ph": "M", "name": "thread_name", "pid": 77, "tid": 3, "ts": 0, "args": {"name": "thread 3 (python)"}},
    ]


def written(path, events, **changes):
    head = {"schemaVersion": 1, "deviceProperties": [{"id": 0, "name": "NVIDIA T4"}], "baseTimeNanoseconds": 17}
    content = json.dumps({**head, "traceEvents": events, "traceName": "run.json", **changes})
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(content.encode()))
    else:
        path.write_text(content)
    return path


@pytest.mark.parametrize("name", ["run.json", "run.json.gz"])
def test_on_a_gpu_a_task_lasts_from_the_first_to_the_last_of_what_it_launched(tmp_path, name):
    trace = read_trace(written(tmp_path / name, gpu_run()))
    assert trace.origin == "real GPU (NVIDIA T4)"
    spans = {one.op: one for one in trace.spans}
    start = 1020.0
    assert {op: (start + one.start_ns / 1000, start + one.end_ns / 1000) for op, one in spans.items()} == {
        "LoadWeights": (1020.0, 1120.0),
        "PostAttn": (1121.5, 1199.25),
        "Attn": (1200.0, 1230.0),
        "Head": (1243.0, 1243.0),  # it launched nothing within its range
    }
    assert spans["LoadWeights"].bytes == 4096
    assert [spans[op].cause for op in ("LoadWeights", "PostAttn", "Attn", "Head")] == [-1, 0, 1, 2]
    assert spans["PostAttn"].key == ("PostAttn", 0, 1, 2, 0, -1)
    assert "clipped_ns" not in trace.metadata


def test_on_an_emulated_device_a_task_lasts_as_long_as_its_range(tmp_path):
    events = gpu_run()
    events[0]["name"] = batch_range("emulated device")
    trace = read_trace(written(tmp_path / "run.json", events))
    assert [(one.start_ns, one.end_ns) for one in trace.spans] == [
        (0, 5_000), (2_000, 22_000), (190_000, 220_000), (230_000, 233_000),
    ]  # fmt: skip


def test_times_far_from_zero_keep_their_nanoseconds(tmp_path):
    events = [one | {"ts": one["ts"] + 4503447910000.0} for one in gpu_run()]
    spans = read_trace(written(tmp_path / "run.json", events)).spans
    assert [one.duration_ns for one in spans] == pytest.approx([100_000, 77_750, 30_000, 0], abs=2)


def test_work_that_the_clocks_let_overlap_on_a_lane_is_clipped_and_said_so(tmp_path):
    events = [*gpu_run(), launch(40, 1241.0, tid=3), kernel(40, 1199.0, 10.0)]
    trace = read_trace(written(tmp_path / "run.json", events))
    head = next(one for one in trace.spans if one.op == "Head")
    assert (head.start_ns, head.end_ns) == (179_250, 189_000)
    assert trace.metadata["clipped_ns"] == 250


def test_tasks_outside_the_batch_are_left_out(tmp_path):
    events = [*gpu_run(), *task(9, "Head", "GPU", 5000.0, 1.0, tid=3)]
    assert {one.id for one in read_trace(written(tmp_path / "run.json", events)).spans} == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda events: events.pop(0), "neither a trace of this project nor a PyTorch profile of a run"),
        (lambda events: events.clear(), "neither a section 'cgopipe' nor any 'traceEvents'"),
        (lambda events: events.__setitem__(slice(1, None), []), "none of its tasks"),
        (
            lambda events: events.__setitem__(
                slice(None), [e for e in events if e.get("cat") not in ("kernel", "gpu_memcpy")]
            ),
            r"holds no work of the GPU: profile with ProfilerActivity\.CUDA",
        ),
        (lambda events: events[1].pop("dur"), "missing required field `dur`"),
        (lambda events: events[1].update(ts="soon"), "is malformed"),
        (lambda events: events[1].update(name="cgopipe::Head id=3"), "a range that this version does not know"),
        (lambda events: events.append([]), "is malformed"),
        (lambda events: events[4].pop("args"), "missing required field `args`"),
        (lambda events: events[0].update(name="cgopipe::batch of a toaster"), r"metadata\.origin is 'a toaster'"),
    ],
)
def test_a_profile_that_cannot_be_used_gets_one_clear_line(tmp_path, change, said):
    events = gpu_run()
    change(events)
    with pytest.raises(InputError, match=said) as raised:
        read_trace(written(tmp_path / "run.json", events))
    assert str(raised.value).startswith(str(tmp_path / "run.json"))
    assert "\n" not in str(raised.value)
