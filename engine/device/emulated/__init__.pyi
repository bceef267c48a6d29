from .device import EmulatedDevice as EmulatedDevice
