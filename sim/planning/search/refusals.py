"""Why there is no plan: nothing fits the memories, or nothing uses as few joules as it may."""

from collections.abc import Sequence

from sim.cost import Setup
from sim.planning.policies import Space, short_bytes
from sim.planning.search.best_first import Plan
from sim.schedule import Tier
from traces.errors import InputError


class NothingFitsError(InputError):
    """No policy on the grid fits the machine. `short_bytes` is what the nearest one lacks.

    What lacks host memory alone is nearer than what the device is too small for (`is_on_device`): it is mended easily.
    """

    def __init__(self, message: str, short_bytes: int = 0, *, is_on_device: bool = False) -> None:
        super().__init__(message)
        self.short_bytes = short_bytes
        self.is_on_device = is_on_device


class AboveLimitError(NothingFitsError):
    """No policy uses as few joules a token as is allowed. `least_joules` is the fewest that there are.

    `plans` are those that were made, of one schedule or several.
    """

    def __init__(self, message: str, least_joules: float = 0.0, plans: Sequence[Plan] = ()) -> None:
        super().__init__(message)
        self.least_joules = least_joules
        self.plans = tuple(plans)


def nothing_fits(schedule: str, tried: Sequence[Space]) -> NothingFitsError:
    """What the nearest of all that was tried lacks."""
    lacking = [one.nearest for one in tried if one.nearest is not None and one.nearest.shortages]
    if not lacking:
        return NothingFitsError(f"{schedule}: the grid holds no policy: give other sizes")
    nearest = min(lacking, key=lambda one: (_lacks_device(one), short_bytes(one)))
    short = "; ".join(map(str, nearest.shortages))
    text = f"{schedule}: no policy on the grid fits; with {nearest.policy}, the nearest, {short}"
    return NothingFitsError(text, short_bytes(nearest), is_on_device=_lacks_device(nearest))


def _lacks_device(setup: Setup) -> bool:
    return any(one.tier == Tier.DEVICE for one in setup.shortages)


def check_limit(schedule: str, plan: Plan) -> None:
    """Raise AboveLimitError if the best of a schedule uses more joules a token than is allowed."""
    most, best = plan.most_joules, plan.best
    if most is not None and best.joules_per_token > most:
        least = best.joules_per_token
        text = f"{schedule}: no policy generates a token with {most:g} J; the fewest joules are {least:.4g}"
        how = f"with {best.policy} at {best.throughput_tokens_per_s:,.2f} tokens/s"
        raise AboveLimitError(f"{text}, {how}", least, [plan])
