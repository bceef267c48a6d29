"""The ranks of a run, a process for each device of one host: the group that they form, and who stops all at a loss."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
