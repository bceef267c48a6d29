"""Memory systems and links that lanes share: max-min fair rates among the tasks that run at one moment.

A task demands an amount per second of each pool when it runs at full speed. If demands exceed a pool, tasks slow
down. The fair share is of *progress*: no task can run faster without one that is no faster than it running slower.
So a weight stream that needs a fifth of the DRAM bandwidth runs at 1 / 1.2 of its speed beside CPU attention that
needs all of it, as MoE-Lens measured (one pass's weights in 6 s instead of 5 s).
"""

from collections.abc import Sequence

from sim.cost import Demands


def fair_rates(demands: Sequence[Demands], capacities: Sequence[int]) -> list[float]:
    """Max-min fair progress rates (0 to 1] of tasks with these demands on pools of these capacities.

    Progressive filling: all rates rise together; when a pool is full, the tasks that use it keep their rate.
    """
    rates = [1.0] * len(demands)
    left = list(map(float, capacities))
    rising = set(range(len(demands)))
    while rising:
        wanted = [0.0] * len(left)
        for flow in rising:
            for pool, amount in demands[flow]:
                wanted[pool] += amount
        level, full = min(
            ((left[pool] / want, pool) for pool, want in enumerate(wanted) if want > 0), default=(1.0, -1)
        )
        if level >= 1.0:
            break
        for flow in sorted(rising):
            if any(pool == full and amount > 0 for pool, amount in demands[flow]):
                rates[flow] = level
                rising.discard(flow)
                for pool, amount in demands[flow]:
                    left[pool] = max(0.0, left[pool] - level * amount)
    return rates
