"""The choice of one token: k different experts, each as often as its popularity says, and all else left to chance.

Of all distributions over sets of k experts that have the given popularities, this is the one of largest entropy. It is
that of experts that are chosen independently, each with a chance of its own, on condition that k are (Chen, Dempster
and Liu 1994, "Weighted finite population sampling to maximize entropy"). Equal popularities make it the plain draw of
k out of E; with k = 1 it is the popularity itself.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

TOLERANCE = 1e-10
"""How near the chances come to the popularities."""
MOST_ROUNDS = 200


@dataclass(frozen=True, slots=True, eq=False)
class ExpertChoice:
    """The independent chances, and the counts that they make of the ranks before and from each one on."""

    top_k: int
    chances: Floats
    before: Floats
    """[i, j]: the probability that j of the first i experts are chosen, when each is chosen independently."""
    behind: Floats
    """[i, j]: the same of the experts from i on."""

    @staticmethod
    def of(popularity: Floats, top_k: int) -> "ExpertChoice":
        """The choice in which the experts have these popularities, which add up to `top_k`."""
        return _choice(popularity.tobytes(), top_k)

    def uses_any(self, first: int, stop: int) -> float:
        """The probability that a token uses at least one of the experts of ranks `first` to `stop` - 1."""
        others = float(self.before[first] @ self.behind[stop][::-1])  # k of them, and so none between
        none = others * float(np.prod(1.0 - self.chances[first:stop])) / self.before[-1, self.top_k]
        return float(min(max(1.0 - none, 0.0), 1.0))

    def draw(self, num_tokens: int, random: np.random.Generator) -> NDArray[np.int16]:
        """[token, j]: the ranks that so many tokens choose, each in rising order."""
        chosen = np.empty((len(self.chances), num_tokens), bool)
        missing = np.full(num_tokens, self.top_k)
        for rank, chance in enumerate(self.chances):
            fewer = np.concatenate(([0.0], self.behind[rank + 1, :-1]))  # those missing, after this one is taken
            with np.errstate(invalid="ignore"):  # 0 / 0 of counts that no token can have
                taken = chance * fewer / self.behind[rank]
            chosen[rank] = random.random(num_tokens) < taken[missing]
            missing -= chosen[rank]
        return np.nonzero(chosen.T)[1].reshape(num_tokens, self.top_k).astype(np.int16)


@lru_cache(maxsize=256)
def _choice(popularity: bytes, top_k: int) -> ExpertChoice:
    """Chances are mended by what is wrong with the popularities that they make, until nothing is.

    Of the two usual steps, the ratio of popularities and that of their odds, the one is slow for experts that nearly
    all tokens use and the other overshoots where k is 1; their geometric mean does neither.
    """
    wanted = np.frombuffer(popularity)
    chances = wanted.copy()
    for _ in range(MOST_ROUNDS):
        choice = _with_chances(chances, top_k)
        made = _popularity_of(choice)
        if np.abs(made - wanted).max() < TOLERANCE:
            break
        free = (chances > 0) & (chances < 1)
        chance, want, have = chances[free], wanted[free], made[free]
        odds = chance / (1 - chance) * want / have * np.sqrt((1 - have) / (1 - want))
        chances[free] = odds / (1 + odds)
    return choice


def _with_chances(chances: Floats, top_k: int) -> ExpertChoice:
    return ExpertChoice(top_k, chances.copy(), _counts(chances, top_k), _counts(chances[::-1], top_k)[::-1])


def _counts(chances: Floats, most: int) -> Floats:
    """[i, j]: the probability that j of the first i are chosen, up to `most`."""
    counts = np.zeros((len(chances) + 1, most + 1))
    counts[0, 0] = 1.0
    for at, chance in enumerate(chances):
        counts[at + 1] = counts[at] * (1 - chance)
        counts[at + 1, 1:] += counts[at, :-1] * chance
    return counts


def _popularity_of(choice: ExpertChoice) -> Floats:
    """How often each expert is among the k: it is, and k - 1 of the others."""
    k = choice.top_k
    others = np.einsum("ij,ij->i", choice.before[:-1, :k], choice.behind[1:, :k][:, ::-1])
    made: Floats = choice.chances * others / choice.before[-1, k]
    return made
