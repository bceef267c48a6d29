"""Arrays: of multipliers, which compute whole tiles, and of chips, which are wired to their neighbours."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
