"""A plan for elsewhere: as a command line of another program, with what that cannot do, or as a page."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
