"""What all pictures have in common."""

from pathlib import Path

from traces.errors import InputError

FORMATS = (".png", ".svg", ".pdf")


def check_format(path: str) -> None:
    """Raise InputError, before any work is done, if the name of a picture has no suffix that can be drawn."""
    if Path(path).suffix.lower() not in FORMATS:
        raise InputError(f"--plot: {path!r} is not a picture; its name must end in {', '.join(FORMATS)}")
