"""The page as one HTML file: it asks the network for nothing, and what users name is text in it, never markup."""

import html
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from traces.page.sections import Section

DIGITS = 6
"""Significant ones of every number on a page."""


def render_page(title: str, summary: Sequence[str], sections: Sequence[Section]) -> str:
    """The text of the file."""
    content = {
        "title": title,
        "summary": list(summary),
        "sections": [{"kind": one.kind, **asdict(one)} for one in sections],
    }
    data = json.dumps(_rounded(content), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    pieces = {
        "{{title}}": html.escape(title),
        "{{css}}": _file("page.css"),
        "{{js}}": _file("page.js"),
        "{{content}}": data.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"),
    }
    before, *behind = _file("page.html").split("{{")
    found = [before]
    for piece in behind:  # each once, so that nothing that is put in is looked through
        name, _, rest = piece.partition("}}")
        found += [pieces["{{" + name + "}}"], rest]
    return "".join(found)


def _file(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _rounded(value: object) -> object:
    match value:
        case float():
            return float(f"{value:.{DIGITS}g}")
        case dict():
            return {key: _rounded(one) for key, one in value.items()}
        case list() | tuple():
            return [_rounded(one) for one in value]
    return value
