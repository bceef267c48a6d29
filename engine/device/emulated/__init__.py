"""A device for machines without one: memory of stated size behind a link of stated bandwidth, in real threads."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
