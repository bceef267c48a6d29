from .device import CudaDevice as CudaDevice
