from .contention import Contention as Contention, contended as contended
from .hand_over import with_hand_over as with_hand_over
from .interference import with_turns as with_turns
from .machine import settled as settled, unfitted as unfitted
from .roofs import Fit as Fit, fit_all as fit_all
