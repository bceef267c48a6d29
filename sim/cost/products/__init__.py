"""What products are computed for: experts and rows that tokens ask for, and those that a device computes beside."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
