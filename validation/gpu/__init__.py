"""One folder that proves the engine and its predictions on an accelerator."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
