"""How far predictions are off, learnt from published runs: by how a machine's numbers are known, and of the model."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
