"""From the fields of a configuration to the layers that they describe, whatever a family calls them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
