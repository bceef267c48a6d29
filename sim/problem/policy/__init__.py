"""How a batch is cut up, how wide numbers are, and what lives where."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
