"""A Transformers model opened from outside: each micro-batch a coroutine through unmodified generate()."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
