"""A page that stands alone: tables, bars, timelines and sliders in one file, and the colours of all pictures."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
