"""What a container grants of the machine: the limits of this process's control groups, in both of Linux's versions."""

import contextlib
import math
from pathlib import Path

ROOT = Path("/")
"""Where /proc and /sys are found."""


def core_limit(root: Path = ROOT) -> float:
    """How many cores' time is granted; infinite where the groups do not say."""
    return min((quota / period for quota, period in _settings(root, "cpu")), default=math.inf)


def memory_limit(root: Path = ROOT) -> float:
    """How many bytes of memory are granted; infinite where the groups do not say."""
    return min((limit for (limit,) in _settings(root, "memory")), default=math.inf)


def memory_in_use(root: Path = ROOT) -> float:
    """How many bytes are taken of the group that is granted least; not a number where the groups do not say."""
    return min(_settings(root, "memory", _USAGE), default=[0, math.nan])[1]


_FILES = {
    "cpu": (("cpu.cfs_quota_us", "cpu.cfs_period_us"), ("cpu.max",)),
    "memory": (("memory.limit_in_bytes",), ("memory.max",)),
}
"""By controller the files that hold its limit, in the first version and in the second."""


_USAGE = (("memory.limit_in_bytes", "memory.usage_in_bytes"), ("memory.max", "memory.current"))


def _settings(root: Path, controller: str, files: tuple[tuple[str, ...], ...] | None = None) -> list[list[int]]:
    """The numbers that limit a controller in each of the process's groups and those that hold them."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        first = bool(controllers)
        if not first or controller in controllers.split(","):
            top = root / "sys/fs/cgroup" / (controller if first else "")
            found += _of_groups(top, path, (files or _FILES[controller])[0 if first else 1])
    return found


def _of_groups(top: Path, path: str, names: tuple[str, ...]) -> list[list[int]]:
    """From a group up to the top; a container sees its own group as the top. What is not limited is left out."""
    inner, found = top / path.lstrip("/"), []
    for folder in (inner, *inner.parents):
        with contextlib.suppress(OSError, ValueError):
            texts = [(folder / name).read_text(encoding="utf-8") for name in names]
            numbers = [int(number) for number in " ".join(texts).split()]  # "max" is no number
            if numbers[0] > 0:
                found.append(numbers)
        if folder == top:
            break
    return found
