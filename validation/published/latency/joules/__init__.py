"""Published joules of generated tokens, each with what was metered, and what data sheets alone say of them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
