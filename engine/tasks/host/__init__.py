"""Tasks and the host's memory and time: room for what they exchange, whole layers there, and what the host takes."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
