"""What a machine is asked: its files, its commands and its driver; so can be what others' machines said."""

import contextlib
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LONGEST_S = 10
"""A command that takes longer says nothing."""

Row = Mapping[str, str]


def printed_by(words: Sequence[str]) -> str | None:
    """What a command prints; None if it is not there, fails or hangs."""
    quiet = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=LONGEST_S, env=quiet)
    except (OSError, subprocess.SubprocessError, UnicodeError):
        return None
    return done.stdout if done.returncode == 0 else None


def nvml_rows() -> list[Row] | None:
    """What NVIDIA's library says of each device, by the names of `nvidia-smi`; None without the library or a driver."""
    try:
        import pynvml
    except ImportError:
        return None
    found = list[Row]()
    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        found += [_row(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
    return found or None


def _row(pynvml: Any, index: int) -> Row:
    """What the library says of one device; what it cannot say of it is left out."""
    device, row = pynvml.nvmlDeviceGetHandleByIndex(index), dict[str, str]()
    asks = {
        "name": pynvml.nvmlDeviceGetName,
        "pcie.link.gen.max": pynvml.nvmlDeviceGetMaxPcieLinkGeneration,
        "pcie.link.width.max": pynvml.nvmlDeviceGetMaxPcieLinkWidth,
    }
    for key, ask in asks.items():
        with contextlib.suppress(pynvml.NVMLError):
            row[key] = _text(ask(device))
    with contextlib.suppress(pynvml.NVMLError):
        row["memory.total"] = str(pynvml.nvmlDeviceGetMemoryInfo(device).total / 2**20)
    with contextlib.suppress(pynvml.NVMLError):
        place = pynvml.nvmlDeviceGetPciInfo(device)
        row |= {"pci.bus_id": _text(place.busId), "pci.device_id": hex(place.pciDeviceId)}
    return row


def _text(said: object) -> str:
    return said.decode() if isinstance(said, bytes) else str(said)


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class AskedSystem:
    """A machine to ask. What it does not have, or may not be read, is None or empty."""

    root: Path = Path("/")
    """Where /proc and /sys are found."""
    run: Callable[[Sequence[str]], str | None] = printed_by
    nvml: Callable[[], list[Row] | None] = nvml_rows
    affinity: Callable[[], int] = _affinity

    def read(self, path: str) -> str:
        """The text of a file, without what surrounds it."""
        with contextlib.suppress(OSError, UnicodeError):
            return (self.root / path.lstrip("/")).read_text(encoding="utf-8").strip()
        return ""

    def number(self, path: str) -> int | None:
        """The whole number that a file holds."""
        with contextlib.suppress(ValueError):
            return int(self.read(path), 0)
        return None

    def folders(self, pattern: str) -> list[str]:
        """The paths that match, in order, from the root on."""
        with contextlib.suppress(OSError):
            return [f"/{one.relative_to(self.root)}" for one in sorted(self.root.glob(pattern.lstrip("/")))]
        return []
