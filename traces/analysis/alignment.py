"""Two traces side by side: which span of one did what which span of the other did."""

from collections.abc import Iterable
from dataclasses import dataclass
from operator import itemgetter

from traces.trace import Key, Span, Trace

_START_ID = itemgetter(Span._fields.index("start_ns"), Span._fields.index("id"))


@dataclass(frozen=True, slots=True)
class Alignment:
    """Spans that both traces have, in pairs in the second one's order of time, and those that only one has."""

    pairs: list[tuple[Span, Span]]
    only_a: list[Span]
    only_b: list[Span]


def align(a: Trace, b: Trace) -> Alignment:
    """Pair spans by their keys; where a key comes several times, the first with the first, and so on."""
    waiting: dict[Key, list[Span]] = {}
    for span in sorted(a.spans, key=_START_ID, reverse=True):
        waiting.setdefault(span.key, []).append(span)
    pairs = []
    only_b = []
    for span in sorted(b.spans, key=_START_ID):
        others = waiting.get(span.key)
        if others:
            pairs.append((others.pop(), span))
        else:
            only_b.append(span)
    return Alignment(pairs, _in_time(span for others in waiting.values() for span in others), only_b)


def _in_time(spans: Iterable[Span]) -> list[Span]:
    return sorted(spans, key=_START_ID)
