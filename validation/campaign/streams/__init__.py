"""A campaign over streams: requests of uneven lengths that come at once or over time, predicted from a calibration."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
