"""The machine at hand in numbers: what is measured, and the machine that is made of it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
