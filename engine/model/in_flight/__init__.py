"""Micro-batches between tasks, each alone or some of their rows together."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
