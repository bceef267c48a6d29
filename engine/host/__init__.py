"""What the host computes in decode where the data lie: attention beside the KV cache, experts beside their weights."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
