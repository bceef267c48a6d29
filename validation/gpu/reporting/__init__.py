"""What a proof tells: the layers of validation over its runs, as text, picture and JSON."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
