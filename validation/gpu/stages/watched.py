"""A program of its own: one small run of the engine on CUDA, watched by torch's detector of unordered accesses.

Torch's detector sees the kernels of the thread that turned it on. The engine works in many threads, so each enters a
mode of its own that reports to the one detector. An unordered access raises where it is made, and the program fails.
"""

import json
import sys
import threading
from collections.abc import Callable
from typing import Any


def watch_all_threads() -> Any:
    """From now on every thread reports to the detector of this program; returns it."""
    from torch.cuda import _sanitizer

    detector = _OneAtATime(_sanitizer.cuda_sanitizer.dispatch.event_handler)
    run_unwatched = threading.Thread.run

    def run(thread: threading.Thread) -> None:
        with _mode(_sanitizer, detector):
            run_unwatched(thread)

    threading.Thread.run = run  # type: ignore[assignment, method-assign]
    return detector


class _OneAtATime:
    """The detector behind a lock: it was written for one thread. Counts the launches that it sees."""

    def __init__(self, detector: Any) -> None:
        self._detector = detector
        self._lock = threading.RLock()
        self.launches = 0

    def _handle_kernel_launch(self, *args: Any) -> Any:
        with self._lock:
            self.launches += 1
            return self._detector._handle_kernel_launch(*args)


def _mode(sanitizer: Any, detector: Any) -> Any:
    """A mode without hooks of its own: those of the first one see the events of all threads."""
    mode = sanitizer.CUDASanitizerDispatchMode.__new__(sanitizer.CUDASanitizerDispatchMode)
    super(sanitizer.CUDASanitizerDispatchMode, mode).__init__()
    mode.event_handler = detector
    return mode


def main(watch: Callable[[], Any] = watch_all_threads, device: str = "cuda") -> int:
    """Run, and print as JSON what was seen."""
    from engine.device import make_device
    from validation.gpu.random_models import tiny_model
    from validation.gpu.stages.tokens import DEVICE_BYTES, SCHEDULES, tokens_by_schedule

    detector = watch()
    model = tiny_model("mixtral")
    for schedule in SCHEDULES:
        with make_device(device, memory_bytes=DEVICE_BYTES) as opened:
            tokens_by_schedule(model, schedule, opened)
    sys.stdout.write(json.dumps({"schedules": SCHEDULES, "launches": detector.launches}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
