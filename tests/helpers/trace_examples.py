"""Traces to test with: one that a person can check, and any that hypothesis thinks of."""

from operator import attrgetter

from hypothesis import strategies as st

from traces.trace import DEVICE_LANES, HOST_LANES, LINK_RATE, MAX_COUNT, MEMORY, Counter, Span, Trace

SIMULATED = {"origin": "simulated"}


def span(id=0, op="PostAttn", lane="GPU", start_ns=0, end_ns=1, **rest):
    """A span with a coordinate in every field that the test does not care about."""
    coordinates = {"rank": 0, "step": 1, "layer": 0, "micro_batch": 0, "page": -1} | rest
    return Span(id=id, op=op, lane=lane, start_ns=start_ns, end_ns=end_ns, **coordinates)


def two_devices():
    """One layer's work on two devices: every kind of lane but DISK, a wait, a latency, a span of no length."""
    spans = [
        span(0, "PinWeights", "PIN", 0, 4_000, layer=1, micro_batch=-1, page=0, bytes=4_000, bound="pin copy"),
        span(1, "PreAttn", "GPU", 0, 1_001, flops=2_002, bytes=64, bound="HBM bandwidth"),
        span(2, "OffloadQKV", "D2H", 1_001, 1_501, bytes=250, bound="D2H link", waited_for="PreAttn L0 m0", cause=1),
        span(3, "Attn", "CPU", 1_501, 5_007, flops=9, bound="DRAM bandwidth", waited_for="OffloadQKV L0 m0", cause=2),
        span(4, "LoadWeights", "H2D", 4_000, 4_700, layer=1, micro_batch=-1, page=0, bytes=8_400, cause=0),
        span(5, "LoadHidden", "H2D", 5_007, 5_107, bytes=100, bound="H2D link", waited_for="Attn L0 m0", cause=3),
        span(6, "OutProj", "GPU", 5_107, 5_107, cause=5),
        span(7, "AllReduce", "NET", 5_107, 5_600, bytes=100, bound="latency", cause=6),
        span(8, "Experts", "GPU", 5_610, 9_999, flops=2**50, bound="FLOP/s", waited_for="AllReduce L0 m0", cause=7),
        span(9, "PinWeights", "PIN", 0, 3_999, rank=1, layer=1, micro_batch=-1, page=0, bytes=4_000),
        span(10, "LoadWeights", "H2D", 3_999, 4_700, rank=1, layer=1, micro_batch=-1, page=0, bytes=8_400, cause=9),
        span(11, "Experts", "GPU", 5_600, 9_990, rank=1, flops=2**50, cause=7),
    ]
    counters = [Counter(MEMORY, 0, {"host": 2**40, "pinned": 4_000})]
    for rank, starts_ns in ((0, 4_000), (1, 3_999)):
        counters += [Counter(MEMORY, time_ns, {"device": held}, rank) for time_ns, held in ((0, 7), (4_700, 8_407))]
        rates = ((0, 0.0), (starts_ns, 12e9), (4_700, 0.0))
        counters += [Counter(LINK_RATE, time_ns, {"D2H": 0.0, "H2D": rate}, rank) for time_ns, rate in rates]
    return Trace(SIMULATED | {"schedule": "cgopipe", "hardware": {"name": "gcp-2xt4"}}, spans, counters)


ANY_TEXT = st.text()

NAMES = st.text(st.characters(exclude_categories=["C"], exclude_characters="\\"))
"""What things are called: quotes and emoji among it. Perfetto misreads control characters and a final backslash."""

_ORIGINS = st.sampled_from(["simulated", "emulated device", "published", "real GPU (NVIDIA H100)"])
_COORDINATE = st.integers(-1, 200)
_COUNT = st.integers(0, MAX_COUNT)
_FLOAT = st.floats(-1e18, 1e18)
_DURATIONS_NS = st.integers(0, 5) | st.integers(0, 10**14)
_LANES = st.tuples(st.sampled_from(DEVICE_LANES + HOST_LANES), st.integers(0, 3))


@st.composite
def traces(draw, text=ANY_TEXT):
    """Any valid trace: up to five lanes, spans in any order, causes that started no later than what they caused."""
    spans = []
    for kind, rank in draw(st.lists(_LANES, unique=True, max_size=5)):
        time_ns = 0
        for idle_ns, busy_ns in draw(st.lists(st.tuples(_DURATIONS_NS, _DURATIONS_NS), max_size=5)):
            start_ns, time_ns = time_ns + idle_ns, time_ns + idle_ns + busy_ns
            spans.append(draw(_spans(kind, rank, start_ns, time_ns, text)))
    ids = draw(st.lists(st.integers(0, 2**40), min_size=len(spans), max_size=len(spans), unique=True))
    earlier = [-1]
    numbered = []
    for number, one in zip(ids, sorted(spans, key=attrgetter("start_ns")), strict=True):
        numbered.append(one._replace(id=number, cause=draw(st.sampled_from(earlier))))
        earlier.append(number)
    metadata = draw(st.dictionaries(text, _json(text), max_size=3)) | {"origin": draw(_ORIGINS)}
    return Trace(metadata, draw(st.permutations(numbered)), draw(st.lists(_counters(text), max_size=5)))


def _spans(kind, rank, start_ns, end_ns, text):
    words = text | st.sampled_from(["PreAttn", "H2D link", ""])
    return st.builds(
        Span, st.just(0), words, st.just(kind), st.just(rank), _COORDINATE, _COORDINATE, _COORDINATE, _COORDINATE,
        st.just(start_ns), st.just(end_ns), _COUNT, _COUNT, words, words,
    )  # fmt: skip


def _counters(text):
    values = st.dictionaries(text, st.integers(-MAX_COUNT, MAX_COUNT) | _FLOAT, min_size=1, max_size=3)
    return st.builds(Counter, text | st.just(MEMORY), st.integers(0, 10**12), values, st.integers(-1, 3))


def _json(text):
    return st.recursive(
        st.none() | st.booleans() | st.integers() | _FLOAT | text,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
        max_leaves=6,
    )
