"""What every schedule must obey: who comes before whom, what lies where, what is computed and what is fetched.

Order is found here anew, from lanes that work in order of issue and dependencies that end first; nothing is shared with
the code that derives the dependencies. The rules of data flow do not ask the code which slots there are, either.
"""

import itertools
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import pairwise
from random import Random

from hypothesis import settings, strategies as st

from sim.cost import Cost
from sim.schedule import (
    CPU,
    D2H,
    DEFERRED,
    GPU,
    H2D,
    WHOLE,
    ExpertPlace,
    Lane,
    LaneKind,
    Op,
    PipelineShape,
    Place,
    Schedule,
    System,
    Task,
    registered,
)
from sim.schedule.base import issue, next_layer
from sim.schedule.slots import slots_of
from sim.schedule.task import PIN
from sim.simulation import Simulation

LOADS = {Op.LOAD_WEIGHTS, Op.LOAD_WEIGHTS_PAGEABLE}
COMPUTED_IN = {
    Op.DEVICE_EXPERTS: ExpertPlace.DEVICE | ExpertPlace.STREAMED | ExpertPlace.FETCHED,
    Op.FETCH_EXPERTS: ExpertPlace.FETCHED,
    Op.HOST_EXPERTS: ExpertPlace.HOST,
}
ON_DEVICE = COMPUTED_IN[Op.DEVICE_EXPERTS]
LATE = (Op.HOST_EXPERTS, Op.LOAD_OUTPUT)
"""Ops of what counts in the next layer, beside those of what counts at once."""
COMPUTE = {Op.PRE_ATTN, Op.ATTN, Op.POST_ATTN, Op.HEAD, Op.ROUTE, Op.ENTER_HOST, Op.HOST_LAYER, *COMPUTED_IN}
LANES = {
    Op.PRE_ATTN: {LaneKind.GPU},
    Op.ATTN: {LaneKind.GPU, LaneKind.CPU},
    Op.POST_ATTN: {LaneKind.GPU},
    Op.HEAD: {LaneKind.GPU},
    Op.OFFLOAD_QKV: {LaneKind.D2H},
    Op.STORE_KV: {LaneKind.D2H},
    Op.STORE_HIDDEN: {LaneKind.D2H},
    Op.LOAD_HIDDEN: {LaneKind.H2D},
    Op.LOAD_KV: {LaneKind.H2D},
    Op.LOAD_WEIGHTS: {LaneKind.H2D},
    Op.LOAD_WEIGHTS_PAGEABLE: {LaneKind.H2D},
    Op.PIN_WEIGHTS: {LaneKind.PIN},
    Op.ROUTE: {LaneKind.GPU},
    Op.OFFLOAD_TOKENS: {LaneKind.D2H},
    Op.HOST_EXPERTS: {LaneKind.CPU},
    Op.LOAD_OUTPUT: {LaneKind.H2D},
    Op.FETCH_EXPERTS: {LaneKind.H2D},
    Op.DEVICE_EXPERTS: {LaneKind.GPU},
    Op.ENTER_HOST: {LaneKind.GPU},
    Op.HOST_LAYER: {LaneKind.CPU},
}


class Backwards(Schedule):
    """Made up for these tests: micro-batches from the last to the first, CPU attention one layer at a time."""

    name = "backwards"
    summary = "all attention of a layer, last micro-batch first, then all experts, weights in pages"
    system = System((Place.CPU, Place.GPU), paged=True, pinned_layers=2)

    def decode(self, shape, step, more):
        for layer in range(shape.num_layers):
            after = next_layer(shape, step, layer, more)
            fetches = after[0] >= 0 and shape.streamed[after[1]]
            for j in reversed(range(shape.num_micro_batches)):
                yield from self._attend(shape, step, layer, j)
                for page in shape.page_group(j) if fetches else ():
                    if not shape.weights_pinned:
                        yield issue(Op.PIN_WEIGHTS, *after, page=page)
                    yield issue(Op.LOAD_WEIGHTS, *after, page=page)
            for j in reversed(range(shape.num_micro_batches)):
                yield from self.finish_layer(shape, step, layer, j)

    def _attend(self, shape, step, layer, j):
        if shape.attention is Place.CPU:
            yield from self.attend_on_cpu(step, layer, j)
            yield issue(Op.LOAD_HIDDEN, step, layer, j)
            return
        if shape.streams_kv:
            yield issue(Op.LOAD_KV, step, layer, j)
        yield from self.attend_on_gpu(step, layer, j)
        if shape.streams_kv:
            yield issue(Op.STORE_KV, step, layer, j)


EVERY = [*registered().values(), Backwards()]


def examples(number):
    """Hypothesis without a clock and without chance: the same examples on every machine."""
    return settings(max_examples=number, deadline=None, derandomize=True)


@st.composite
def shapes(draw, schedule, max_layers=6, max_micro_batches=8, max_pages=9):
    """Any pipeline that the schedule can work with."""
    num_layers = draw(st.integers(1, max_layers))
    n = draw(st.integers(1, max_micro_batches))
    attention = draw(st.sampled_from(schedule.system.attention))
    on_device = schedule.system.kv_on_device or (attention is Place.GPU and draw(st.booleans()))
    some = st.lists(st.booleans(), min_size=num_layers, max_size=num_layers).map(tuple)
    if schedule.system.splits_experts:
        shape = draw(_split_shapes(schedule, num_layers, n, max_pages, attention, on_device=on_device))
        if shape.runs_on_host:
            return shape
        return replace(shape, attending_on_device=draw(attending_on_device(schedule, attention, n)))
    return PipelineShape(
        num_layers=num_layers,
        num_micro_batches=n,
        num_pages=draw(st.integers(1, max_pages)) if schedule.system.paged else 1,
        attention=attention,
        streamed=draw(st.just((True,) * num_layers) | some),
        streams_non_experts=schedule.system.streams_non_experts,
        streams_kv=not on_device,
        offloads_hidden=schedule.system.offloads_hidden and n > 1 and draw(st.sampled_from((True, True, False))),
        weights_pinned=draw(st.booleans()),
        attending_on_device=draw(attending_on_device(schedule, attention, n)),
    )


def attending_on_device(schedule, attention, n):
    """How many micro-batches attend on the device beside others on the CPU, where the schedule can."""
    mixes = schedule.system.mixes_attention and attention is Place.CPU
    return st.integers(0, n) if mixes else st.just(0)


@st.composite
def _split_shapes(draw, schedule, num_layers, n, max_pages, attention, *, on_device):
    """Experts in any places that the schedule knows, dense layers among the others, and any groups."""
    system = schedule.system
    single = [place for place in ExpertPlace if place & system.experts]
    subsets = [ExpertPlace(sum(some)) for k in range(len(single) + 1) for some in itertools.combinations(single, k)]
    layer = st.sampled_from([0, *single] if system.whole_layers else subsets).map(ExpertPlace)
    experts = draw(layer.map(lambda one: (one,) * num_layers) | st.tuples(*[layer] * num_layers))
    first = stop = 0
    if system.runs_layers_on_host and draw(st.booleans()):
        first = draw(st.integers(0, num_layers - 1))
        stop = draw(st.integers(first + 1, num_layers))
    experts = tuple(ExpertPlace(0) if first <= at < stop else one for at, one in enumerate(experts))
    on_gpu = draw(st.sampled_from(system.prefill_experts)) is Place.GPU
    moved = tuple(bool(one & ~ExpertPlace.DEVICE) for one in experts)
    return PipelineShape(
        num_layers=num_layers,
        num_micro_batches=n,
        num_pages=draw(st.integers(1, max_pages)) if system.paged else 1,
        attention=attention,
        streamed=tuple(bool(one & ExpertPlace.STREAMED) for one in experts),
        streams_kv=not on_device,
        offloads_hidden=on_gpu
        and system.offloads_hidden
        and n > 1
        and first == stop
        and draw(st.sampled_from((True, True, False))),
        weights_pinned=draw(st.booleans()),
        layers_on_host=(first, stop),
        experts=experts,
        num_groups=draw(st.integers(1, n)),
        prefill_experts=Place.GPU if on_gpu else Place.CPU,
        streamed_in_prefill=moved if on_gpu else (),
        defers_experts=system.defers_experts and draw(st.booleans()),
    )


class Order:
    """Happens-before: `before(a, b)` if task a has ended whenever task b starts, whatever the durations."""

    def __init__(self, tasks):
        self._place = {task.id: place for place, task in enumerate(tasks)}
        self._past = []  # per task, a set of places as bits: the transitive closure
        last_on_lane = {}
        for place, task in enumerate(tasks):
            past = 0
            for earlier in (last_on_lane.get(task.lane), *(self._place.get(dep) for dep in task.deps)):
                if earlier is not None:
                    past |= self._past[earlier] | 1 << earlier
            self._past.append(past)
            last_on_lane[task.lane] = place

    def before(self, a, b):
        return bool(self._past[self._place[b.id]] >> self._place[a.id] & 1)


def assert_well_formed(tasks, window_is_cut=False):
    """Ids rise, dependencies name earlier tasks (of before the window only below 0), ops run where they can."""
    known, keys = set(), set()
    newest = -1
    for task in tasks:
        assert task.id > newest, f"id does not rise: {task}"
        newest = task.id
        for dep in task.deps:
            assert dep in known or (window_is_cut and dep < 0), f"waits for what was not issued before: {task}"
        assert len(set(task.deps)) == len(task.deps), f"waits twice for one task: {task}"
        assert task.lane.kind in LANES[task.op], f"on the wrong lane: {task}"
        assert task.key not in keys, f"issued twice: {task}"
        known.add(task.id)
        keys.add(task.key)


def assert_no_race(tasks, accesses, order, memory=None):
    """Every read finds what it expects and no write is unordered with it; returns what memory then holds.

    A slot's accesses in order of issue must be so in time: each write after the write and the reads before it, each
    read after the write before it.
    """
    memory = {} if memory is None else dict(memory)
    writers, readers = {}, defaultdict(list)
    for task in tasks:
        reads, writes = accesses(task)
        for slot, content in touched(reads):
            assert memory.get(slot) == content, f"{task} expects {content} in {slot}, which holds {memory.get(slot)}"
            if slot in writers:
                assert order.before(writers[slot], task), f"{task} reads {slot} beside its write by {writers[slot]}"
            readers[slot].append(task)
        for slot, content in touched(writes):
            for reader in readers.pop(slot, []):
                assert reader is task or order.before(reader, task), f"{task} writes {slot} beside its reader {reader}"
            if slot in writers:
                assert order.before(writers[slot], task), f"{task} and {writers[slot]} both write {slot}"
            writers[slot], memory[slot] = task, content
    return memory


def touched(accesses):
    """(slot, content) of each slot."""
    return [(slot, access.content) for access in accesses for slot in slots_of([access])]


def arithmetic(tasks):
    """What is computed, and how often."""
    return Counter((task.op, task.step, task.layer, task.micro_batch) for task in tasks if task.op in COMPUTE)


def all_arithmetic(shape, first, stop):
    """PreAttn, Attn and PostAttn once per (step, layer, micro-batch), Head once per (step, micro-batch).

    Where experts are split off: Route instead of PostAttn, and for each group once the experts of every place.
    """
    turns = [(step, j) for step in range(first, stop) for j in range(shape.num_micro_batches)]
    done = Counter((Op.HEAD, s, -1, j) for s, j in turns)
    first_on_host, behind = shape.layers_on_host
    if first_on_host < behind:
        done.update((Op.ENTER_HOST, s, first_on_host, j) for s, j in turns if s == 0 or first_on_host > 0)
    for (step, j), layer in itertools.product(turns, range(shape.num_layers)):
        if first_on_host <= layer < behind:
            done[Op.HOST_LAYER, step, layer, j] += 1
            continue
        split = shape.splits_experts(step) and bool(shape.experts[layer])
        done.update((op, step, layer, j) for op in (Op.PRE_ATTN, Op.ATTN, Op.ROUTE if split else Op.POST_ATTN))
        if split and j == first_of_group(shape, j):
            places = shape.experts[layer]
            done.update((op, step, layer, j) for op, where in COMPUTED_IN.items() if places & where)
            done[Op.HOST_EXPERTS, step, layer, j] += takes_deferred(shape, step, layer) is not None
    return done


def takes_deferred(shape, step, layer):
    """The layer in which a part of this one's experts counts: the next one that has some; None if none is late."""
    if not shape.defers_experts or step == 0 or not shape.experts[layer] & ExpertPlace.HOST:
        return None
    return next((later for later in range(layer + 1, shape.num_layers) if shape.experts[later]), None)


def first_of_group(shape, j):
    """The micro-batch that names the tasks of j's group."""
    return max(one.start for one in map(shape.group, range(shape.num_groups)) if one.start <= j)


def assert_weights_arrive_once(tasks, shape, first, last):
    """All pages of every streamed layer once a step, by way of staging if not pinned, and nothing beyond the last."""
    arrived, pinned = Counter(), Counter()
    for task in tasks:
        assert first <= task.step <= last, f"beyond the last step, {last}: {task}"
        if task.op in LOADS:
            pages = range(shape.num_pages) if task.page == WHOLE else [task.page]
            arrived.update((task.step, task.layer, page) for page in pages)
        if task.op is Op.PIN_WEIGHTS:
            pinned[task.step, task.layer, task.page] += 1
    steps = {task.step for task in tasks if task.op is Op.HEAD}
    runs = [(step, layer) for step in steps for layer in range(shape.num_layers) if shape.streams(step, layer)]
    expected = Counter((*run, page) for run in runs for page in range(shape.num_pages))
    begins = shape.first_on_device
    early = Counter({(first, begins, page): 1 for page in range(shape.num_pages)}) if first > 0 else Counter()
    ahead = Counter({key: 1 for key in arrived if key[0] not in steps})
    assert set(ahead) in (set(), {(max(steps) + 1, begins, page) for page in range(shape.num_pages)})
    assert arrived - ahead in (expected, expected - early), "a page arrives not at all, or twice"
    staged = Counter((t.step, t.layer, t.page) for t in tasks if t.op is Op.LOAD_WEIGHTS and not shape.weights_pinned)
    assert staged - pinned in (Counter(), staged & early), "loaded from staging, but never put there"
    assert not pinned - staged, "put into staging, but never loaded"
    if shape.weights_pinned:
        assert not pinned, "pinned weights need no staging"
        assert not any(task.op is Op.LOAD_WEIGHTS_PAGEABLE for task in tasks), "pinned weights are not pageable"


def paths_of(shape, step, layer, j, first=0):
    """The chains of tasks, as (op, step, layer, micro-batch), that one micro-batch takes through one layer."""
    last = layer == shape.num_layers - 1
    if shape.layers_on_host[0] <= layer < shape.layers_on_host[1]:
        return [_path_on_host(shape, step, layer, j, first)]
    inside = [Op.PRE_ATTN, Op.ATTN]
    if step > 0 and shape.attends(j) is Place.CPU:
        inside = [Op.PRE_ATTN, Op.OFFLOAD_QKV, Op.ATTN, Op.LOAD_HIDDEN]
    path = [(op, step, layer, j) for op in inside]
    if layer == 0 and step > first:
        path.insert(0, (Op.HEAD, step - 1, -1, j))
    if step == 0 and shape.offloads_hidden and layer > 0:
        path.insert(0, (Op.LOAD_HIDDEN, step, layer, j))
    after = [(Op.HEAD, step, -1, j) if last else (Op.PRE_ATTN, step, layer + 1, j)]
    if layer + 1 == shape.layers_on_host[0] < shape.layers_on_host[1]:
        after = [(Op.ENTER_HOST, step, layer + 1, j)]
    if step == 0 and shape.offloads_hidden and not last:
        after = [(Op.STORE_HIDDEN, step, layer, j), (Op.LOAD_HIDDEN, step, layer + 1, j)]
    if not shape.splits_experts(step) or not shape.experts[layer]:
        return [[*path, (Op.POST_ATTN, step, layer, j), *after]]
    group, places = first_of_group(shape, j), shape.experts[layer]
    ways = {
        ExpertPlace.HOST: (Op.OFFLOAD_TOKENS, Op.HOST_EXPERTS, Op.LOAD_OUTPUT),
        ExpertPlace.FETCHED: (Op.OFFLOAD_TOKENS, Op.FETCH_EXPERTS, Op.DEVICE_EXPERTS),
        ON_DEVICE: (Op.DEVICE_EXPERTS,),
    }
    mine = [[(op, step, layer, group) for op in ops] for where, ops in ways.items() if places & where]
    paths = [[*path, (Op.ROUTE, step, layer, j), *way, *after] for way in mine]
    late = takes_deferred(shape, step, layer)
    if late is not None:
        way = ((Op.OFFLOAD_TOKENS, step, layer, group), *(((op, "late"), step, layer, group) for op in LATE))
        then = (Op.HEAD, step, -1, j) if late == shape.num_layers - 1 else (Op.PRE_ATTN, step, late + 1, j)
        paths.append([*way, then])
    return paths


def _path_on_host(shape, step, layer, j, first):
    """The same of a layer that the host runs whole."""
    begins, behind = shape.layers_on_host
    path = [(Op.HOST_LAYER, step, layer, j)]
    if layer == begins:
        path.insert(0, (Op.STORE_HIDDEN, step, layer, j))
        if step == 0 or layer > 0:
            path.insert(0, (Op.ENTER_HOST, step, layer, j))
        elif step > first:
            path.insert(0, (Op.HEAD, step - 1, -1, j))
    if layer + 1 < behind:
        return [*path, (Op.HOST_LAYER, step, layer + 1, j)]
    after = (Op.HEAD, step, -1, j) if behind == shape.num_layers else (Op.PRE_ATTN, step, behind, j)
    return [*path, (Op.LOAD_HIDDEN, step, layer, j), after]


def cache_path_of(shape, step, layer, j, first=0):
    """The chain of tasks through which the KV cache of one micro-batch in one layer passes: written, kept, read."""
    if shape.layers_on_host[0] <= layer < shape.layers_on_host[1]:
        return [(Op.HOST_LAYER, when, layer, j) for when in range(max(first, step - 1), step + 1)]
    on_cpu = shape.attention is Place.CPU
    leaves = shape.streams_kv and shape.attends(j) is shape.attention
    stored = [(Op.STORE_KV, step, layer, j)] if leaves and (step == 0 or not on_cpu) else []
    loaded = [(Op.LOAD_KV, step, layer, j)] if leaves and step > 0 and not on_cpu else []
    before = []
    if step > first:
        before = [(Op.STORE_KV if leaves and (step == 1 or not on_cpu) else Op.ATTN, step - 1, layer, j)]
    return [*before, *loaded, (Op.ATTN, step, layer, j), *stored]


def assert_data_flows(tasks, shape, order, first, stop):
    """Results reach those who need them; weights arrive before use; two layers' buffers are never overfilled."""
    late = {task for task in tasks if task.op in LATE and task.page == DEFERRED}
    named = {((t.op, "late") if t in late else t.op, t.step, t.layer, t.micro_batch): t for t in tasks}
    for step in range(first, stop):
        for turn in ((layer, j) for layer in range(shape.num_layers) for j in range(shape.num_micro_batches)):
            paths = *paths_of(shape, step, *turn, first), cache_path_of(shape, step, *turn, first)
            for earlier, later in (pair for path in paths for pair in pairwise(path)):
                if earlier == (Op.LOAD_KV, first, *turn) and earlier not in named and first > 0:
                    continue  # loaded before the window begins
                assert earlier in named, f"{earlier} is missing"
                assert order.before(named[earlier], named[later]), f"{later} does not wait for {earlier}"
    loads, uses = defaultdict(list), defaultdict(list)
    readers = {Op.POST_ATTN, Op.DEVICE_EXPERTS, *((Op.PRE_ATTN, Op.ROUTE) if shape.streams_non_experts else ())}
    for task in tasks:
        if task.op in LOADS:
            loads[task.step, task.layer].append(task)
        elif task.op in readers and shape.streams(task.step, task.layer):
            uses[task.step, task.layer].append(task)
    runs = sorted(uses.keys() | loads.keys())
    for run in runs:
        assert all(order.before(load, use) for load in loads[run] for use in uses[run]), f"{run} lacks weights"
    for old, new in zip(runs, runs[2:], strict=False):
        assert all(order.before(use, load) for use in uses[old] for load in loads[new]), f"{new} overwrites {old}"


def assert_buffers_suffice(tasks, schedule, shape, order):
    """Staging, KV and hidden-state buffers: as many in use at a time as there are."""
    of = defaultdict(list)
    for task in tasks:
        of[task.op].append(task)
    if shape.attention is Place.GPU:
        attended = {(task.step, task.layer, task.micro_batch): task for task in of[Op.ATTN]}
        _assert_turns(of[Op.LOAD_KV], attended, order)
        stored = {(task.step, task.layer, task.micro_batch): task for task in of[Op.STORE_KV]}
        if shape.streams_kv:
            _assert_turns(of[Op.ATTN], stored, order)
    moved = {(task.step, task.layer, task.page): task for task in of[Op.LOAD_WEIGHTS]}
    pinned = defaultdict(list)
    for task in of[Op.PIN_WEIGHTS]:
        pinned[task.page].append(task)
    for page, own in pinned.items():
        for old, new in zip(own, own[schedule.system.pinned_layers :], strict=False):
            assert order.before(moved[old.step, old.layer, page], new), f"{new} overwrites staging before {old} left"


def _assert_turns(filled, freed, order):
    """Each third filling waits until the first was freed: two buffers."""
    for old, new in zip(filled, filled[2:], strict=False):
        name = old.step, old.layer, old.micro_batch
        if name in freed:
            assert order.before(freed[name], new), f"{new} overwrites the buffer of {old}"


def random_durations(tasks, seed):
    """Nanoseconds by id, zeros among them, on lanes of very different speed."""
    random = Random(seed)
    pace = {lane: random.choice((1, 10, 200)) for lane in sorted({task.lane for task in tasks})}
    return {task.id: random.randrange(12) * pace[task.lane] for task in tasks}


def simulate(steps, durations, capacities=(), hand_over_ns=0):
    """Every task as it ran; `durations` give nanoseconds, or costs, by id."""
    seen = []
    costs = {id_: cost if isinstance(cost, Cost) else Cost(cost) for id_, cost in durations.items()}
    Simulation(steps, lambda task: costs[task.id], capacities, on_task=seen.append, hand_over_ns=hand_over_ns).run()
    return seen


HAND_OVERS = st.sampled_from((0, 1, 7, 60, 900, 20_000))
"""Nanoseconds, beside tasks of up to some thousand."""

FIVE_LANES = (GPU, CPU, H2D, D2H, PIN)


def task(id_, lane, *deps, step=0, op=Op.ATTN):
    """A task made by hand."""
    return Task(id_, op, lane, step, deps=deps)


@st.composite
def task_lists(draw):
    """(steps of tasks in any order on the lanes of up to three ranks, nanoseconds by id): no schedule of ours."""
    ranks = draw(st.integers(1, 3))
    lanes = st.sampled_from([Lane(kind, rank) for kind in LaneKind for rank in range(ranks)])
    steps, count = [], 0
    for number, size in enumerate(draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))):
        ids = range(count, count := count + size)
        deps = [draw(st.sets(st.integers(-2, id_ - 1), max_size=3)) for id_ in ids]
        steps.append(
            [
                task(id_, draw(lanes), *sorted(own), step=number, op=draw(st.sampled_from(Op)))
                for id_, own in zip(ids, deps, strict=True)
            ]
        )
    pace, random = draw(st.sampled_from((1, 30, 5_000))), Random(draw(st.integers(0, 2**32)))
    return steps, {id_: pace * random.randrange(10) for id_ in range(count)}


@st.composite
def contended(draw, tasks):
    """A cost by id with random demands, and capacities that they exceed now and then."""
    demands = st.dictionaries(st.integers(0, 2), st.integers(1, 100), max_size=3).map(lambda one: tuple(one.items()))
    kinds = draw(st.lists(st.builds(Cost, st.integers(0, 3000), demands), min_size=1, max_size=6))
    random = Random(draw(st.integers(0, 2**32)))
    return {one.id: random.choice(kinds) for one in tasks}, tuple(
        draw(st.lists(st.integers(30, 150), min_size=3, max_size=3))
    )
