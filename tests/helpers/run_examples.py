"""Any small run that hypothesis thinks of: few ops, lanes and layers, so that runs have tasks in common."""

from hypothesis import strategies as st
from trace_examples import SIMULATED, span

from traces.trace import Trace

_LANES = (("GPU", 0), ("CPU", 0), ("GPU", 1))
_WAITS = ("", "Attn", "dependency", "end of run")
_TASKS = st.tuples(
    st.sampled_from("AB"), st.sampled_from(_LANES), st.integers(0, 2), st.integers(0, 9), st.integers(0, 9),
    st.integers(0, 5), st.sampled_from(_WAITS),
)  # fmt: skip


def runs():
    """Tasks in order of issue, several of them perhaps with one key; a cause may end after what it caused starts."""
    return st.lists(_TASKS, max_size=14).map(_run)


def _run(tasks):
    spans, free_at = [], {}
    for number, (op, (lane, rank), layer, idle_ns, busy_ns, back, waited_for) in enumerate(tasks):
        start_ns = free_at.get((lane, rank), 0) + idle_ns
        free_at[lane, rank] = start_ns + busy_ns
        earlier = [one.id for one in spans if one.start_ns <= start_ns]
        cause = earlier[-back] if 0 < back <= len(earlier) else -1
        coordinates = {"rank": rank, "layer": layer, "waited_for": waited_for, "cause": cause}
        spans.append(span(number, op, lane, start_ns, free_at[lane, rank], **coordinates))
    return Trace(SIMULATED, spans)
