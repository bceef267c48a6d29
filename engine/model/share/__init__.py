"""A rank's share of a model: its heads, its columns of experts and its words, and where ranks add up."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
