"""Options that many commands have, and the types of their values: a wrong one is told in a line before any work."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from traces.errors import nearest, shown

FORMATS = (".png", ".svg", ".pdf")  # what pictures are drawn into


def positive_int(text: str) -> int:
    """Read a whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not allowed; give a whole number of at least 1")
    return value


def one_of(*names: str) -> Callable[[str], str]:
    """Read one of some names."""

    def known(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"{shown(text)} is none of {', '.join(names)}{nearest(text, names)}")
        return text

    return known


def add_json(parser: Any) -> None:
    """Add where the results go as JSON to a parser or a group of it."""
    parser.add_argument("--json", metavar="FILE", help="write results as JSON; - is standard output, without tables")


def add_plot(parser: Any, what: str, option: str = "--plot") -> None:
    """Add where a picture goes."""
    parser.add_argument(option, metavar="FILE", type=_picture, help=f"draw {what}: .png, .svg or .pdf")


def add_html(parser: Any, what: str) -> None:
    """Add where a page goes."""
    parser.add_argument("--html", metavar="FILE", help=f"write {what} as a page that stands alone")


def add_jobs(parser: Any, what: str = "processes (default: one per core)") -> None:
    """Add how many share the work."""
    parser.add_argument("--jobs", type=positive_int, metavar="N", help=what)


def _picture(path: str) -> str:
    if Path(path).suffix.lower() not in FORMATS:
        raise argparse.ArgumentTypeError(f"{shown(path)} is not a picture; its name must end in {', '.join(FORMATS)}")
    return path
