"""The machine at hand: what its files and commands say of it, and what a few seconds measure."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
