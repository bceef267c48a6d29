"""Runs a saved model in a process of its own and prints, as JSON, what host memory the process itself took for it.

That is anonymous memory: a file that is mapped is the system's to drop. Bytes, since before the model was loaded.
"""

import json
import sys
import threading
from pathlib import Path

from engine_models import PROMPTS, make

import engine
from engine.device import EmulatedDevice
from engine.generation import load_model
from sim.problem import Policy

SAMPLE_S = 0.002


def anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.partition("RssAnon:")[2].split()[0])


class Watch:
    """Keeps the most that was seen while it is entered."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._over.wait(SAMPLE_S):
            self.peak_bytes = max(self.peak_bytes, anonymous_bytes())

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def main(folder: str, share: float, weight_bits: float | None) -> None:
    with EmulatedDevice(None, None, 1 << 30) as device:
        engine.run(make("mixtral"), PROMPTS, max_new_tokens=3, device=device)  # what any run loads and compiles
        before = anonymous_bytes()
        model = load_model(folder)
        with Watch() as watch:
            policy = Policy(len(PROMPTS), 4, pin_weights=share, weight_bits=weight_bits)
            held: list[int] = []
            result = engine.run(
                model,
                PROMPTS,
                policy=policy,
                max_new_tokens=3,
                device=device,
                on_batch=lambda batch: held.append(anonymous_bytes() - before),
                keep_model=weight_bits is None,
            )
        after = anonymous_bytes()
    found = {"peak": watch.peak_bytes - before, "held": held[0], "after": after - before}
    found["accounts"] = result.stats.peak_bytes
    sys.stdout.write(json.dumps(found) + "\n")


main(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) > 3 else None)
