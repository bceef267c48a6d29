"""What a layer does between its tokens: kinds of attention, and of states that take its place."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
