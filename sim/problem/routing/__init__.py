"""Which experts tokens use: how popular each is, and what any number of tokens needs of them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
