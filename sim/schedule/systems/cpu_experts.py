"""KTransformers: routed experts on the host, all else on the device."""

from sim.schedule.experts import SplitExperts
from sim.schedule.shape import ExpertPlace, Place, System


class CpuExperts(SplitExperts):
    """The host computes its part of each layer's experts while the device computes its own, and the shared ones.

    Some experts of each layer, the most popular ones if that is known, are on the device. Of the host's, those that
    count least for a token may be deferred: they are computed while the device attends in the next layer, and count
    there, which changes the model's outputs (KTransformers, SOSP'25, "Expert Deferral").
    """

    name = "cpu-experts"
    summary = "routed experts on the CPU beside shared and some routed ones on the GPU (KTransformers)"
    system = System(
        (Place.GPU,),
        kv_on_device=True,
        offloads_hidden=False,
        one_batch=True,
        experts=ExpertPlace.DEVICE | ExpertPlace.HOST,
        others=ExpertPlace.HOST,
        prefill_experts=(Place.CPU, Place.GPU),
        defers_experts=True,
    )
