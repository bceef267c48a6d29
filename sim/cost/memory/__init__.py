"""Where every byte of a policy lives: the memory plan, which decides feasibility before anything is simulated."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
