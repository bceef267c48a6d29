"""The iterator that hands out what a stream makes, and through which it is told what nobody wants."""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Self

from engine.generation.streaming.serving import Serving
from engine.generation.streaming.stats import StreamStats
from engine.generation.streaming.wanted import RequestOutput
from traces.trace import Trace

LOOK_UP_S = 0.1
"""How often who waits for an output looks up: the delay of Ctrl-C."""


class OutputStream:
    """Outputs of requests, each as it ends. Closing it early ends what still runs; used up, it is closed.

    `stats` and `trace` are there when all outputs have been taken; the trace, if one was asked for.
    """

    def __init__(self, make: Callable[[Callable[[RequestOutput | BaseException | None], None]], Serving]) -> None:
        """`make` is given where outputs go to."""
        self._outputs = queue.SimpleQueue[RequestOutput | BaseException | None]()
        self._serving = make(self._outputs.put)
        self._requests = {one.number: one for one in self._serving.requests}
        self._owner = threading.current_thread()
        self._thread = threading.Thread(target=self._serving.work, name="stream")
        self._thread.start()

    @property
    def stats(self) -> StreamStats | None:
        """What it did, once it has ended."""
        return self._serving.stats

    @property
    def trace(self) -> Trace | None:
        """Its first steps, once it has ended."""
        return self._serving.trace

    def cancel(self, number: int) -> None:
        """Nobody wants a request any more: it ends with what it has. One that has ended stays as it is."""
        request = self._requests.get(number)
        if request is not None:
            self._serving.cancel(request)

    def close(self) -> None:
        """Ends what still runs, and waits for it."""
        self._serving.stop()
        self._thread.join()

    def __iter__(self) -> Iterator[RequestOutput]:
        return self

    def __next__(self) -> RequestOutput:
        try:
            found = self._take()
        except BaseException:
            self.close()
            raise
        if isinstance(found, RequestOutput):
            return found
        self._thread.join()
        self._outputs.put(None)  # whoever asks again hears the same
        if found is not None:
            raise found
        raise StopIteration

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not hasattr(self, "_thread"):
            return  # it never began
        self._serving.stop()
        if threading.current_thread() is self._owner:  # a lane that collects garbage must not wait for itself
            self._thread.join()

    def _take(self) -> RequestOutput | BaseException | None:
        while True:  # Ctrl-C comes between two looks
            with contextlib.suppress(queue.Empty):
                return self._outputs.get(timeout=LOOK_UP_S)
