"""How wide stored numbers are: a width for each kind of tensor, and how a file or a person says it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
