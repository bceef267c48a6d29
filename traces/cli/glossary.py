"""The words that tables, traces and pictures show, each with its meaning: legends and docs/glossary.md come from here.

`python -m traces.cli.glossary > docs/glossary.md` writes the document.
"""

import re
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from traces.files import read_toml

UNSAID = "Plain words"  # the chapter whose words the document explains, but no legend


@cache
def chapters() -> dict[str, dict[str, str]]:
    """Words and their meanings by chapter; a meaning is a phrase, as in `{"H2D": "copies from host to device"}`."""
    return read_toml(Path(__file__).with_suffix(".toml"))


def legend(shown: str) -> dict[str, dict[str, str]]:
    """The words of a text that need a meaning, by chapter. Of words within words the longest counts."""
    told = {name: words for name, words in chapters().items() if name != UNSAID}
    longest_first = sorted((word for words in told.values() for word in words), key=len, reverse=True)
    found = set(re.findall("|".join(map(_alone, longest_first)), shown))
    return {name: {word: words[word] for word in words if word in found} for name, words in told.items()}


def _alone(word: str) -> str:
    """A pattern of the word, not as a part of another one; a symbol may stand anywhere."""
    before = r"(?<![\w-])" if word[0].isalnum() else ""
    return before + re.escape(word) + (r"(?![\w-])" if word[-1].isalnum() else "")


def meanings(words: Mapping[str, str]) -> list[str]:
    """A Markdown table of words and meanings."""
    lines = ("| {} | {} |".format(word.replace("|", "\\|"), text) for word, text in words.items())
    return ["| word | meaning |", "|---|---|", *lines, ""]


def markdown() -> str:
    """The document: a chapter after the other."""
    lines = ["# Glossary", "", "The words that tables, traces and pictures of this project show.", ""]
    for name, words in chapters().items():
        lines += [f"## {name}", "", *meanings(words)]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    sys.stdout.write(markdown())
