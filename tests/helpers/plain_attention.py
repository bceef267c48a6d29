"""Attention as it is defined, in float64, and random numbers for it."""

import torch


def random(*shape, dtype=torch.float32, seed=0, scale=1.0):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def reference(query, keys, values, starts, scaling=None):
    """Attention in float64, request by request, head by head."""
    requests, heads, dim = query.shape
    group = heads // keys.shape[1]
    query, keys, values = query.double(), keys.double(), values.double()
    scale = dim**-0.5 if scaling is None else scaling
    out = torch.empty(requests, heads, dim, dtype=torch.float64)
    for r in range(requests):
        for head in range(heads):
            k, v = keys[r, head // group, int(starts[r]) :], values[r, head // group, int(starts[r]) :]
            out[r, head] = torch.softmax(k @ query[r, head] * scale, 0) @ v
    return out
