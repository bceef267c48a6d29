from .device import XlaDevice as XlaDevice
from .lanes import XlaLane as XlaLane
