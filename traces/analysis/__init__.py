"""What a run did: each lane's use of time, the critical path, and how two runs differ."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
