from .interference import (
    Contention as Contention,
    contended as contended,
    with_hand_over as with_hand_over,
    with_interference as with_interference,
)
from .machine import settled as settled, unfitted as unfitted
from .roofs import Fit as Fit, fit_all as fit_all
