"""A pytest plugin for runs that are expected to fail: the first counter-example is enough, and it is always the same.

It lies in each copy of the project and imports nothing of ours.
"""

from hypothesis import HealthCheck, Phase, settings

settings.register_profile(
    "quick failures",
    derandomize=True,
    deadline=None,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("quick failures")
