"""MoE-Infinity and FreeToken: the experts used last stay on the device, others are fetched when they are asked for."""

from sim.schedule.experts import SplitExperts
from sim.schedule.shape import ExpertPlace, Place, System


class ExpertCache(SplitExperts):
    """Each layer has slots for some experts. One that is asked for, in none, takes that of the one used longest ago."""

    name = "expert-cache"
    summary = "routed experts fetched when asked for, into a cache of those used last (MoE-Infinity, FreeToken)"
    system = System(
        (Place.GPU,),
        kv_on_device=True,
        offloads_hidden=False,
        one_batch=True,
        pins_weights=True,
        experts=ExpertPlace.DEVICE | ExpertPlace.FETCHED,
        others=ExpertPlace.FETCHED,
        caches_experts=True,
    )
