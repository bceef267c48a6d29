"""How far a prediction may be off: the machine's numbers drawn by how they are known, each draw simulated."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
