"""What a person measured beside what is predicted: whether it is normal, and what to try first."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
