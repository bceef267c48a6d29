"""The KV cache of a micro-batch: what the model sees of it, and where its content lives."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
