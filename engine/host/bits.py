"""Tensors as compiled loops see them."""

from typing import Any

import numpy as np
import torch

Array = np.ndarray[Any, Any]

BITS = {torch.float32: torch.float32, torch.float16: torch.uint16, torch.bfloat16: torch.int16}
"""Element types that the kernels take, and as what NumPy, which has no bfloat16, sees their bits."""


def bits_of(tensor: torch.Tensor) -> Array:
    """The tensor as NumPy sees it: without a copy, and without torch's threads, which would spin beside ours."""
    found: Array = tensor.detach().view(BITS[tensor.dtype]).numpy()
    return found
