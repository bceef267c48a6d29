"""Schedules by name: the built-in ones and those that installed packages add."""

from functools import lru_cache
from importlib.metadata import entry_points

from sim.schedule.base import Schedule
from sim.schedule.systems import (
    Accelerate,
    CGOPipe,
    CpuExperts,
    ExpertCache,
    FastDecode,
    FlexGen,
    FlexGenC,
    Hybrid,
    NCpuMoe,
    Zero,
)
from traces.errors import InputError, check_text, nearest, shown

ENTRY_POINTS = "cgopipe.schedules"
BUILT_IN: tuple[type[Schedule], ...] = (
    CGOPipe,
    FastDecode,
    FlexGenC,
    FlexGen,
    Zero,
    Accelerate,
    NCpuMoe,
    CpuExperts,
    ExpertCache,
    Hybrid,
)


@lru_cache(maxsize=1)
def registered() -> dict[str, Schedule]:
    """All schedules by name, built-in ones first."""
    found = {schedule.name: schedule() for schedule in BUILT_IN}
    for entry in entry_points(group=ENTRY_POINTS):
        schedule = entry.load()
        if not (isinstance(schedule, type) and issubclass(schedule, Schedule)):
            raise InputError(f"entry point {ENTRY_POINTS}:{entry.name} is not a Schedule class: uninstall or mend it")
        found[schedule.name] = schedule()
    return found


def by_name(name: str) -> Schedule:
    """The schedule of that name; InputError with the nearest names if there is none."""
    known = registered()
    if check_text("schedule", name) not in known:
        raise InputError(f"unknown schedule {shown(name)}{nearest(name, known)}; known: {', '.join(known)}")
    return known[name]
