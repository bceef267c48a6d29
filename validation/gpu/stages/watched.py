"""A program of its own: one small run of the engine on CUDA, watched by torch's detector of unordered accesses.

Torch's detector sees the kernels of the thread that turned it on. The engine works in many threads, so each enters a
mode of its own that reports to the one detector. An unordered access raises where it is made, and the program fails.
"""

import json
import sys
import threading
from collections.abc import Callable
from typing import Any, cast

LAUNCH = "_handle_kernel_launch"


def watch_all_threads() -> "_Locked":
    """From now on every thread that is started reports to the detector of this program; returns it."""
    from torch.cuda import _sanitizer

    lock, first = threading.RLock(), cast(Any, _sanitizer.cuda_sanitizer.dispatch)
    for name in ("syncs", "tensors_accessed"):  # what its hooks for events and memory use, which are registered already
        setattr(first.event_handler, name, _Locked(getattr(first.event_handler, name), lock))
    detector = first.event_handler = _Locked(first.event_handler, lock)
    run_unwatched = threading.Thread.run

    def run(thread: threading.Thread) -> None:
        with _mode(_sanitizer.CUDASanitizerDispatchMode, detector):
            run_unwatched(thread)

    threading.Thread.run = run  # type: ignore[assignment, method-assign]
    return detector


class _Locked:
    """An object that was written for one thread, used by many. Counts the launches that it is told of."""

    def __init__(self, inside: Any, lock: Any) -> None:
        self._inside, self._lock = inside, lock
        self.launches = 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inside, name)
        if not callable(found):
            return found

        def call(*args: Any) -> Any:
            with self._lock:
                self.launches += name == LAUNCH
                return found(*args)

        return call


def _mode(kind: Any, detector: _Locked) -> Any:
    """A mode without hooks of its own: those of the first one see the events of all threads."""
    mode = kind.__new__(kind)
    super(kind, mode).__init__()
    mode.event_handler = detector
    return mode


def main(watch: Callable[[], Any] = watch_all_threads, device: str = "cuda") -> int:
    """Run, and print as JSON what was seen."""
    from engine.device import make_device
    from validation.gpu.random_models import tiny_model
    from validation.gpu.stages.tokens import DEVICE_BYTES, WATCHED_SCHEDULES, tokens_by_schedule

    detector = watch()
    model = tiny_model("mixtral")
    for schedule in WATCHED_SCHEDULES:
        with make_device(device, memory_bytes=DEVICE_BYTES) as opened:
            tokens_by_schedule(model, schedule, opened)
    sys.stdout.write(json.dumps({"schedules": WATCHED_SCHEDULES, "launches": detector.launches}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
