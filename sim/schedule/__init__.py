"""Schedules: what runs where, in which order, as tasks that the simulator and the engine share."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
