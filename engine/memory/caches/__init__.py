"""What is kept from step to step: KV caches of requests in blocks, and the experts that were used last."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
