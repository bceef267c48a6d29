"""How many tokens requests generate before they end: all that they may, or as a distribution or a file says."""

import math
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Self

import numpy as np

from traces.errors import InputError, check_count, check_range, nearest
from traces.files import read_objects

LOGNORMAL = "lognormal"
FORMS = (
    f"constant, {LOGNORMAL}:MEAN,SIGMA such as {LOGNORMAL}:100,0.8, "
    'or a .jsonl file with {"generated_tokens": 64} a line'
)
MOST_SIGMA = 5.0
MOST_MEAN = 1e6

_STREAM_OF_DRAWS = 1
"""Keeps the draws of lengths apart from those of arrivals."""


@dataclass(frozen=True, slots=True)
class GenerationLengths:
    """Lengths that are all alike, or lognormal about a mean, cut where a request may not go on, or those of a file."""

    mean_tokens: float = 0.0
    sigma: float | None = None
    tokens: tuple[int, ...] = ()
    """Of a file, which begins anew where there are more requests."""
    source: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `constant`, `lognormal:100,0.8` or a file. Raises InputError with what is allowed."""
        law, _, numbers = text.partition(":")
        if text == "constant":
            return cls()
        mean, comma, sigma = numbers.partition(",")
        if law != LOGNORMAL or not comma:
            return cls._read(text)
        mean_tokens = check_range(f"gen-lens {text!r}: MEAN", _number(mean), 1, MOST_MEAN)
        return cls(mean_tokens, check_range(f"gen-lens {text!r}: SIGMA", _number(sigma), 0, MOST_SIGMA), source=text)

    @classmethod
    def _read(cls, text: str) -> Self:
        path = Path(text)
        if path.suffix.lower() != ".jsonl" and not path.is_file():
            near = nearest(text.partition(":")[0], ("constant", LOGNORMAL))
            raise InputError(f"gen-lens {text!r}: unknown{near}; give {FORMS}")
        name = "generated_tokens"
        tokens = tuple(check_count(f"{where}: {name}", line.get(name)) for where, line in read_objects(path))
        if not tokens:
            raise InputError(f'{path}: is empty; give one length a line, such as {{"{name}": 64}}')
        return cls(tokens=tokens, source=text)

    def drawn(self, most: int, count: int, seed: int) -> list[int]:
        """Of so many requests that may generate `most` tokens each, how many each does.

        Raises InputError where the mean, or a length of the file, is more than they may.
        """
        needed = max(self.tokens, default=math.ceil(self.mean_tokens))
        if needed > most:
            raise InputError(
                f"gen-lens {self.source}: {needed} tokens are more than the {most} that a request may generate: "
                f"give a larger --gen-len"
            )
        if self.tokens:
            return list(islice(cycle(self.tokens), count))
        if self.sigma is None:
            return [most] * count
        location = math.log(self.mean_tokens) - self.sigma**2 / 2
        draws = np.random.default_rng([seed, _STREAM_OF_DRAWS]).lognormal(location, self.sigma, count)
        found: list[int] = np.clip(np.rint(draws), 1, most).astype(int).tolist()
        return found


CONSTANT = GenerationLengths()


def _number(text: str) -> float:
    """The number in a text; one that is in no range where there is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan
