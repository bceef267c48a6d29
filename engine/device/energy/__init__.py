"""What this machine's own counters say of the energy that it uses, by component, while work is done."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
