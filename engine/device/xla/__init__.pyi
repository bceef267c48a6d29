from .callback import Callback as Callback, measure_callback as measure_callback
from .device import XlaDevice as XlaDevice
from .lanes import XlaLane as XlaLane
