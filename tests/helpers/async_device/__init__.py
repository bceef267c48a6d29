"""A device of torch in Python, whose streams run as late as an order lets them: for the engine's own stream code.

Tensors have real storages and lifetimes. What a stream is given runs when something waits for it, or at once where the
order says so; freed memory is poisoned; copies of pageable memory block; torch's own race detector watches every
kernel, copy, event and wait. There are no times but the host's, no kernels of a GPU, and only a simple allocator.

It stands on private names of torch (`interface.py`): `MISSING` names those that this torch does not have.
"""

from async_device.interface import MISSING as MISSING
