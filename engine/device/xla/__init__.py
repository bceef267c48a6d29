"""A device that XLA compiles for: its memory spaces with accounts, and lanes whose order is that of dispatch."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
