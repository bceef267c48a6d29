"""What quantisers write into a configuration: which modules they narrow, and to how many bits."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
