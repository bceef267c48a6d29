"""Max-min fair rates in exact arithmetic: what the simulator's must equal."""

from fractions import Fraction


def filled_exactly(demands, capacities):
    """Progressive filling in exact arithmetic: raise all rates until a pool is full, fix its users, go on."""
    rates = {}
    while len(rates) < len(demands):
        rising = [flow for flow in range(len(demands)) if flow not in rates]
        limits = {flow: Fraction(1) for flow in rising}
        for pool, capacity in enumerate(capacities):
            taken = sum((rates[flow] * dict(demands[flow]).get(pool, 0) for flow in rates), Fraction(0))
            wanted = sum(dict(demands[flow]).get(pool, 0) for flow in rising)
            for flow in rising:
                if dict(demands[flow]).get(pool, 0):
                    limits[flow] = min(limits[flow], (capacity - taken) / wanted)
        lowest = min(limits.values())
        rates.update({flow: lowest for flow in rising if limits[flow] == lowest})
    return [rates[flow] for flow in range(len(demands))]
