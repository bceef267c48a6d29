"""The policies that may be the best: each value of each field, and which of them fit every memory."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
