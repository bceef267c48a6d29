"""What a policy takes: the time of each task, its demand on what lanes share, and the memory of all of it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
