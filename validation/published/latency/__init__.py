"""Published rates of systems that leave experts on the host, prefill and decode apart, predicted."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
