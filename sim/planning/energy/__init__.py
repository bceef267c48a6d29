"""Speed against energy and money: the policies of which none is better in both, and what a token costs."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
