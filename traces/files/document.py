"""The JSON of a trace file, of either kind: checked as a whole, its events decoded one by one."""

from collections.abc import Callable

from msgspec import Raw, Struct

from traces.errors import InputError

SCHEMA = 1
"""The version of our part of the file. A reader refuses any other."""

SECTION = "cgopipe"
"""The top-level member that holds our metadata, and tells our files from others'."""

EVENTS = "traceEvents"
_SHOWN = 120  # characters of an event that something is wrong with


class Document(Struct, rename={"section": SECTION, "events": EVENTS}):
    """What a file holds of use, as JSON text: a million decoded events would take several gigabytes."""

    section: Raw = Raw()
    events: list[Raw] = []


def nanoseconds(microseconds: float) -> int:
    """A time of the file, whose unit is the Trace Event Format's."""
    return round(microseconds * 1000)


def take_each(events: list[Raw], take: Callable[[Raw], None]) -> None:
    """Hand over one event after the other; what is wrong with one becomes an InputError that shows it."""
    for event in events:
        try:
            take(event)
        except (ValueError, OverflowError) as error:  # msgspec's errors are ValueErrors
            text = bytes(event).decode(errors="replace")
            shown = text[:_SHOWN] + ("…" if len(text) > _SHOWN else "")
            raise InputError(f"its event {' '.join(shown.split())} is malformed: {error}") from error
