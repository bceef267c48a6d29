"""Where a model comes from: a preset, the Hub, a folder or a file, read as far as its configuration and headers go."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
