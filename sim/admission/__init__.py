"""Requests that come and go: which of them enter, when, and what each step carries."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
