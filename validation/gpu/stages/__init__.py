"""What is proved, a stage a file: each a list of pieces of work in order of importance."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
