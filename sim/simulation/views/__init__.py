"""A simulated run to be looked at: its first steps as a trace, or one layer of one step."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
