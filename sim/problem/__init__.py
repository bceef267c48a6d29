"""What is asked: a model on a machine for a workload, and the policy it runs with."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
