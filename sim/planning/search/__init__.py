"""The search for the best policy: every policy bounded, then simulated from the best bound on."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
