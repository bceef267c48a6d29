"""What every trace file must obey to open well in a viewer and to be read by the PyTorch profiler's tools.

Written against the file alone, with none of the code that wrote it.
"""

import gzip
import json
from bisect import bisect_right
from collections import defaultdict
from decimal import Decimal
from itertools import pairwise
from operator import itemgetter

DEVICE_LANES = {"GPU": "kernel", "NET": "kernel", "H2D": "gpu_memcpy", "D2H": "gpu_memcpy"}  # lane -> cat
HOST_LANES = dict.fromkeys(("CPU", "PIN", "DISK"), "cpu_op")
NUMBERS = {"id", "step", "layer", "micro_batch", "page", "bytes", "flops", "cause"}
WORDS = {"op", "bound", "waited_for"}


def assert_obeys_rules(path):
    """Check names, order, slices, args, counters and arrows of a trace file."""
    assert_content_obeys_rules(load(path))


def load(path):
    """The content of a trace file, its times as decimals, as written."""
    opened = gzip.open if str(path).endswith(".gz") else open
    with opened(path, "rt", encoding="utf-8") as text:
        return json.load(text, parse_float=Decimal, parse_constant=_fail)


def assert_content_obeys_rules(file):
    assert file["displayTimeUnit"] == "ns"
    assert file["cgopipe"]["metadata"]["origin"]
    events = defaultdict(list)
    for event in file["traceEvents"]:
        events[event["ph"]].append(event)
    assert set(events) <= set("MXCsf"), "phases other than metadata, slices, counters and arrows"
    processes, threads = _named_and_sorted(events["M"], file["cgopipe"]["metadata"]["origin"])
    assert {slice_["pid"] for slice_ in events["X"]} | {counter["pid"] for counter in events["C"]} == set(processes), (
        "not each process has its name"
    )
    assert {(slice_["pid"], slice_["tid"]) for slice_ in events["X"]} == set(threads), "not each thread has its name"
    for slice_ in events["X"]:
        _assert_slice(slice_, threads[slice_["pid"], slice_["tid"]])
    timeline = _threads_in_time(events["X"])
    _assert_no_overlap(timeline)
    _assert_counters(events["C"], processes, threads)
    _assert_arrows(events["s"], events["f"], events["X"], timeline)


def _fail(constant):
    raise AssertionError(f"{constant} is no JSON number")


def _ns(microseconds):
    """Whole nanoseconds, written with three decimals."""
    assert type(microseconds) is Decimal, f"{microseconds!r} has no decimals"
    assert microseconds.as_tuple().exponent == -3, f"{microseconds} has not three decimals"
    return int(microseconds * 1000)


def _named_and_sorted(metadata, origin):
    """The name of each process and thread; each has one name and one place, and no two of a kind share either."""
    found = defaultdict(dict)
    for event in metadata:
        ((_, value),) = event["args"].items()
        where = event["pid"] if event["name"].startswith("process_") else (event["pid"], event["tid"])
        assert where not in found[event["name"]], f"{event['name']} of {where} is given twice"
        found[event["name"]][where] = value
    processes, threads = found["process_name"], found["thread_name"]
    assert set(processes) == set(found["process_sort_index"]), "not each process has its name and its place"
    assert set(threads) == set(found["thread_sort_index"]), "not each thread has its name and its place"
    assert all(origin in name for name in processes.values()), "a process that does not say what its numbers are"
    assert len(set(processes.values())) == len(set(found["process_sort_index"].values())) == len(processes)
    for pid in processes:
        here = [where for where in threads if where[0] == pid]
        assert len({threads[where] for where in here}) == len(here), f"two threads of process {pid} share a name"
        assert len({found["thread_sort_index"][where] for where in here}) == len(here)
    return processes, threads


def _assert_slice(event, thread):
    lane, args = thread.partition(":")[0], event["args"]
    assert args.keys() >= NUMBERS | WORDS, f"{event['name']} lacks {NUMBERS | WORDS - args.keys()}"
    assert all(type(args[name]) is int for name in NUMBERS)
    assert all(type(args[name]) is str for name in WORDS)
    assert min(args["bytes"], args["flops"]) >= 0
    assert args["op"] in event["name"]
    duration_ns = _ns(event["dur"])
    assert min(_ns(event["ts"]), duration_ns) >= 0
    assert event["cat"] == (DEVICE_LANES | HOST_LANES)[lane], f"{event['name']} on {lane} is a {event['cat']}"
    if lane in HOST_LANES:
        assert "stream" not in args
        return
    assert (args["device"], args["stream"]) == (event["pid"], event["tid"])
    assert args["stream"] > 0
    if event["cat"] == "gpu_memcpy":
        assert event["name"].startswith({"H2D": "Memcpy HtoD ", "D2H": "Memcpy DtoH "}[lane])
        rate = args["memory bandwidth (GB/s)"]
        assert (
            rate == "N/A"
            if duration_ns == 0
            else abs(float(rate) * duration_ns - args["bytes"]) <= 1e-9 * args["bytes"]
        )


def _threads_in_time(slices):
    """(start, end, id) of the slices of each thread, in time order."""
    threads = defaultdict(list)
    for event in slices:
        start_ns = _ns(event["ts"])
        threads[event["pid"], event["tid"]].append((start_ns, start_ns + _ns(event["dur"]), event["args"]["id"]))
    return {thread: sorted(times) for thread, times in threads.items()}


def _assert_no_overlap(threads):
    for thread, times in threads.items():
        for before, after in pairwise(times):
            assert before[1] <= after[0], f"slices of {thread} overlap: {before} and {after}"


def _assert_counters(counters, processes, threads):
    """Every process shows its memories, every device its link; samples are numbers, none negative, in time order."""
    series = defaultdict(set)
    latest_ns = {}
    for event in counters:
        where = (event["pid"], event["name"])
        time_ns = _ns(event["ts"])
        assert time_ns >= latest_ns.get(where, 0), f"samples of {where} go back in time"
        latest_ns[where] = time_ns
        assert min(event["args"].values()) >= 0
        series[where] |= event["args"].keys()
    for pid in processes:
        here = {name for where, name in threads.items() if where[0] == pid}
        on_device = bool(here & DEVICE_LANES.keys())
        memories = series[pid, "memory (bytes)"]
        assert "device" in memories if on_device else memories >= {"host"}, f"no memory counter of {processes[pid]}"
        links = here & {"H2D", "D2H"}
        assert series[pid, "link rate (bytes/s)"] >= links, f"no link counter of {processes[pid]}"


def _assert_arrows(starts, ends, slices, timeline):
    """One arrow from each slice of the critical path to the next, both ends inside their slices, and no other."""
    assert [arrow["id"] for arrow in starts] == [arrow["id"] for arrow in ends], "an arrow lacks an end"
    assert len({arrow["id"] for arrow in starts}) == len(starts)
    drawn = [(_slice_at(start, timeline), _slice_at(end, timeline)) for start, end in zip(starts, ends, strict=True)]
    assert all(end["bp"] == "e" for end in ends), "an end that binds to the next slice, not to the one around it"
    assert all(_ns(start["ts"]) <= _ns(end["ts"]) for start, end in zip(starts, ends, strict=True))
    assert drawn == list(pairwise(_critical_path(slices))), "the arrows are not the critical path"


def _slice_at(arrow, threads):
    """The id of the slice of the arrow's thread that is open at its time."""
    time_ns = _ns(arrow["ts"])
    times = threads[arrow["pid"], arrow["tid"]]
    start_ns, end_ns, found = times[bisect_right(times, time_ns, key=itemgetter(0)) - 1]
    assert start_ns <= time_ns < end_ns, f"no slice lies around {arrow}"
    return found


def _critical_path(slices):
    """Ids, in time order, of the causes of the slice that ends last; those of no length can carry no arrow."""
    by_id = {event["args"]["id"]: event for event in slices}
    path = []
    at = min(by_id, key=lambda id_: (-_ns(by_id[id_]["ts"]) - _ns(by_id[id_]["dur"]), id_), default=-1)
    while at != -1:
        path.append(at)
        at = by_id[at]["args"]["cause"]
    return [id_ for id_ in reversed(path) if _ns(by_id[id_]["dur"])]
