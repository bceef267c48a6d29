"""From an order of issue to tasks: what each waits for, and its copies on several devices."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
