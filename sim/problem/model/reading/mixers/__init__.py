"""What mixes the tokens of a layer, read from a configuration, kind by kind."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
