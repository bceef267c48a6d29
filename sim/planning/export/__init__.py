"""A plan for elsewhere: as command lines of other programs, with what these cannot do."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
