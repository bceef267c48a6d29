"""What a run draws: joules of its tasks, power over time, and what comes of it for each request and token."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
