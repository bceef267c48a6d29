"""What another system's paper says must hold of a machine, computed anew with our model of it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
