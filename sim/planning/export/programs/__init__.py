"""Other programs that serve models: what each can be told on its command line, and how a plan is said there."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
