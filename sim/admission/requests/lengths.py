"""How long prompts are, and what requests generate before they end: all that they may, or as a law or a file says."""

import math
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Self

import numpy as np

from traces.errors import InputError, check_count, check_range, nearest, shown
from traces.files import is_file, read_objects

CONSTANT, LOGNORMAL = "constant", "lognormal"
MOST_SIGMA = 5.0
MOST_MEAN = 1e6

GENERATED, PROMPTS = "generated_tokens", "prompt_tokens"
"""What has the lengths, as a line of a file names it."""

_OPTIONS = {GENERATED: "gen-lens", PROMPTS: "prompt-lens"}
_STREAMS_OF_DRAWS = {GENERATED: 1, PROMPTS: 3}
"""Keeps their draws apart from each other, and from those of arrivals."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lengths that are all alike, or lognormal about a mean, cut where a request may not go on, or those of a file."""

    mean_tokens: float = 0.0
    sigma: float | None = None
    tokens: tuple[int, ...] = ()
    """Of a file, which begins anew where there are more requests."""
    source: str = CONSTANT
    of: str = GENERATED

    @classmethod
    def parse(cls, text: str, of: str = GENERATED) -> Self:
        """Read `constant`, `lognormal:100,0.8` or a file. Raises InputError with what is allowed."""
        law, _, numbers = text.partition(":")
        if text == CONSTANT:
            return cls(of=of)
        mean, comma, sigma = numbers.partition(",")
        if law != LOGNORMAL or not comma:
            return cls._read(text, of)
        option = f"{_OPTIONS[of]} {shown(text)}"
        mean_tokens = check_range(f"{option}: MEAN", _number(mean), 1, MOST_MEAN)
        return cls(mean_tokens, check_range(f"{option}: SIGMA", _number(sigma), 0, MOST_SIGMA), source=text, of=of)

    @classmethod
    def _read(cls, text: str, of: str) -> Self:
        path, line_of_it = Path(text), f'{{"{of}": 64}}'
        if path.suffix.lower() != ".jsonl" and not is_file(path):
            law = text.partition(":")[0]
            near = "" if law == LOGNORMAL else nearest(law, (CONSTANT, LOGNORMAL))
            raise InputError(
                f"{_OPTIONS[of]} {shown(text)}: unknown{near}; give {CONSTANT}, {LOGNORMAL}:MEAN,SIGMA such as "
                f"{LOGNORMAL}:100,0.8, or a .jsonl file with {line_of_it} a line"
            )
        tokens = tuple(check_count(f"{where}: {of}", line.get(of)) for where, line in read_objects(path))
        if not tokens:
            raise InputError(f"{path}: is empty; give one length a line, such as {line_of_it}")
        return cls(tokens=tokens, source=text, of=of)

    def drawn(self, most: int, count: int, seed: int) -> list[int]:
        """Of so many requests, of which each may have `most`, the length of each.

        Raises InputError where the mean, or a length of the file, is more than they may have.
        """
        needed = max(self.tokens, default=math.ceil(self.mean_tokens))
        if needed > most:
            raise InputError(
                f"{_OPTIONS[self.of]} {self.source}: {needed} tokens are more than the {most} that a request may have: "
                f"give a larger --gen-len"
            )
        if self.tokens:
            return list(islice(cycle(self.tokens), count))
        if self.sigma is None:
            return [most] * count
        location = math.log(self.mean_tokens) - self.sigma**2 / 2
        draws = np.random.default_rng([seed, _STREAMS_OF_DRAWS[self.of]]).lognormal(location, self.sigma, count)
        found: list[int] = np.clip(np.rint(draws), 1, most).astype(int).tolist()
        return found


ALL_THEY_MAY = Lengths()


def _number(text: str) -> float:
    """The number in a text; one that is in no range where there is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan
