"""The prediction: how an offloaded Mixture-of-Experts model will run on a given machine, and why."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
