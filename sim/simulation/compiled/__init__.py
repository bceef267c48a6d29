"""The same simulation over arrays in compiled code, for those who ask about many setups."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
