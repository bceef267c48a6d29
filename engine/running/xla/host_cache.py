"""The KV cache of a micro-batch in one layer, in host memory, and decode attention beside it in NumPy."""

from typing import Any

import numpy as np

Numbers = np.ndarray[Any, Any]


class HostCache:
    """Keys and values [R, K, W, D] of a static length W."""

    def __init__(self, shape: tuple[int, int, int, int], dtype: Any) -> None:
        self.arrays: tuple[Numbers, Numbers] = (np.zeros(shape, dtype), np.zeros(shape, dtype))

    @property
    def num_bytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)

    def store(self, keys: Numbers, values: Numbers, at: int) -> None:
        """Tokens [R, K, T, D] at the places from `at` on."""
        for array, new in zip(self.arrays, (keys, values), strict=True):
            array[:, :, at : at + new.shape[2]] = new

    def attend(self, query: Numbers, length: int, padding: Numbers, scale: float) -> Numbers:
        """Of one token a request [R, N, 1, D] to the first `length` places but for padding: [R, 1, N x D]."""
        keys, values = (array[:, :, :length].astype(np.float32, copy=False) for array in self.arrays)
        num_requests, num_kv_heads, _, width = keys.shape
        grouped = query.astype(np.float32, copy=False).reshape(num_requests, num_kv_heads, -1, width)
        scores = grouped @ keys.swapaxes(2, 3) * scale
        scores[np.broadcast_to((np.arange(length) < padding[:, None])[:, None, None], scores.shape)] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        attended: Numbers = (weights @ values).reshape(num_requests, 1, -1).astype(query.dtype)
        return attended
