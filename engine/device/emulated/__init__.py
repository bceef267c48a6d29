"""A device that the host plays, for machines that have none: host memory with accounts behind paced links."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
