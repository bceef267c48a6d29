"""What schedules have in common that compute experts apart from the rest of a layer, each where it is."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
