"""Tasks on threads: each lane works through its queue in order of issue."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
