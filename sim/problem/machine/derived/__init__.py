"""Numbers of a machine that no file gives, derived from those that are given."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
