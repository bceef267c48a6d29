"""What a call is given, its prompts and its arguments: checked before anything is set up."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
