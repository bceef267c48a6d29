"""A sweep on a Ray cluster: a task for each item, results in the order of the items.

Ray's backend for joblib gives results all at once, when the last is there; rows are wanted as they come.
"""

import logging
import socket
from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import Any, TypeVar

from traces.errors import InputError

AHEAD = 4
"""Tasks a core that may be on their way, so that a core that has done one finds the next one beside it."""

_T = TypeVar("_T")
_R = TypeVar("_R")


def map_on_ray(
    work: Callable[[_T], _R], items: Iterable[_T], jobs: int | None, cluster: str | None
) -> Generator[_R, None, None]:
    """Yield the results in order, each as soon as it and those before it are there; `jobs` at once, or on all cores.

    Ended early, it asks for no more; what is on its way ends for nothing, or with this process. (To cancel may end the
    process instead: of a task that has just ended, it fails a check inside Ray.) Raises InputError where there is no
    Ray, or no cluster at the address; what `work` raises comes out as it is.
    """
    ray = _connected(cluster)
    task = ray.remote(work)
    most = jobs or AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting: deque[Any] = deque()
    for item in items:
        waiting.append(task.remote(item))
        if len(waiting) >= most:
            yield _result(ray, waiting)
    while waiting:
        yield _result(ray, waiting)


def _result(ray: Any, waiting: deque[Any]) -> Any:
    try:
        result = ray.get(waiting[0])
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    waiting.popleft()
    return result


def _connected(cluster: str | None) -> Any:
    """The library, with the cluster at an address, or one of its own on this machine."""
    try:
        import ray
    except ImportError:
        raise InputError("--backend ray: needs the package `ray`: pip install ray") from None
    if not ray.is_initialized():
        try:
            _look_for(cluster)
            ray.init(address=cluster or "local", log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, ValueError) as error:
            raise InputError(f"--cluster {cluster}: no Ray head answers there: {error}") from None
    return ray


def _look_for(cluster: str | None) -> None:
    """Raise OSError where nobody listens: Ray itself would go on trying for minutes."""
    host, colon, port = (cluster or "").removeprefix("ray://").rpartition(":")
    if colon:
        socket.create_connection((host, int(port)), timeout=10).close()
