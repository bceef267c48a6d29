"""Why a task of a real run started when it did."""

from collections.abc import Iterable, Mapping

from traces.trace import NONE

DEPENDENCY = "dependency"
"""What a real run's lane waited for: another lane's task, which the span's `cause` names."""


def cause_of(start_ns: int, deps: Iterable[int], before: int, ends_ns: Mapping[int, int]) -> int:
    """The id of the task whose end let one start at `start_ns`; NONE if it waited for none.

    `deps` are its dependencies, `before` is the task before it on its lane; of those that had ended, the last to end.
    """
    ended = [id_ for id_ in (*deps, before) if id_ in ends_ns and ends_ns[id_] <= start_ns]
    return max(ended, key=lambda id_: ends_ns[id_], default=NONE)
