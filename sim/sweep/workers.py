"""Who computes a sweep: this process, all cores or a Dask cluster by way of joblib, or a Ray cluster."""

import os
import warnings
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

from sim.sweep.on_ray import map_on_ray
from traces.cli import begin_worker, uninterrupted
from traces.errors import InputError

BACKENDS = ("loky", "threading", "dask", "ray")
"""Processes on this machine, threads of this process, and clusters."""

_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True, slots=True)
class Workers:
    """`jobs` at once (default: one per core, or all that the cluster has) on one of the backends.

    `cluster` is the address of a Dask scheduler or Ray head; without one, these start their own on this machine.
    """

    jobs: int | None = None
    backend: str = "loky"
    cluster: str | None = None

    def __post_init__(self) -> None:
        if self.cluster is not None and self.backend not in ("dask", "ray"):
            raise InputError(f"--cluster: {self.backend} has none; give --backend dask or --backend ray with it")

    def map(self, work: Callable[[_T], _R], items: Iterable[_T]) -> Generator[_R]:
        """Yield the results in the order of the items, each as soon as it and those before it are there."""
        jobs = self.jobs or os.cpu_count() or 1
        if self.backend == "loky" and jobs == 1:
            yield from map(work, items)
            return
        if self.backend == "ray":
            yield from map_on_ray(work, items, self.jobs, self.cluster)
            return
        from joblib import Parallel, delayed

        with ExitStack() as stack:
            stack.enter_context(self._backend())
            count = jobs if self.backend in ("loky", "threading") else self.jobs or -1
            with uninterrupted():  # workers that start here inherit it
                results = Parallel(count, return_as="generator")(delayed(work)(item) for item in items)
            stack.callback(_give_up, results)
            for result in results:  # noqa: UP028 - closed by `_give_up`, not before it
                yield result

    def _backend(self) -> AbstractContextManager[Any]:
        from joblib import parallel_config

        if self.backend == "dask":
            return _dask(self.cluster)
        alone = {"initializer": begin_worker} if self.backend == "loky" else {}
        context: AbstractContextManager[Any] = parallel_config(self.backend, **alone)
        return context


def _give_up(results: Any) -> None:
    """Stop what still runs; that results are missing then is no news."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results.close()


def _dask(cluster: str | None) -> AbstractContextManager[Any]:
    try:
        from distributed import Client
    except ImportError:
        raise InputError("--backend dask: needs the package `distributed`: pip install distributed") from None
    from joblib import parallel_config

    stack = ExitStack()
    try:
        client = stack.enter_context(Client(cluster, timeout=10))  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise InputError(f"--cluster {cluster}: no Dask scheduler answers there: {error}") from None
    stack.enter_context(parallel_config("dask", client=client))
    return stack
