"""The requests of a micro-batch, each with its own choice of tokens and its own end, whatever its company."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
