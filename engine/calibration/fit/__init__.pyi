from .interference import (
    Contention as Contention,
    contended as contended,
    contended_on_host as contended_on_host,
    with_hand_over as with_hand_over,
    with_interference as with_interference,
)
from .machine import settled as settled, unfitted as unfitted
from .power import watts_in_words as watts_in_words, with_watts as with_watts
from .roofs import Fit as Fit, fit_all as fit_all
from .together import of_devices as of_devices
