"""The experts of a layer: by what code routed ones are computed, wherever they lie, and which may be computed apart."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
