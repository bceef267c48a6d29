"""Schedules side by side on a stream of requests, with their prompts before decode and beside it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
