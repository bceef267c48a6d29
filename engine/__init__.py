"""The execution: the schedules of `sim` driving PyTorch. Torch and transformers load when it is first used."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
