"""A stream of requests in simulated time: what its steps take, and when each request has its tokens."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
