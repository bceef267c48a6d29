"""Experts that lie in the memory of a device which the host plays: in decode, by the kernel for experts on the host.

The library's product over all experts is a call for each of them on a CPU, whether tokens use it or not: 1.7 ms for 128
small experts of which a token uses 8, where reading the weights takes 0.5 ms. A GPU has one kernel for all of it.
"""

import torch
from torch import nn

from engine.host.experts.host_experts import HostExperts
from engine.host.threads import HostThreads
from engine.model import ExpertPart


class PlayedExperts:
    """Computes parts of modules that `can_run_on_host`, for a device that the host plays. Used from one thread."""

    def __init__(self, threads: HostThreads) -> None:
        self._threads = threads
        self._known: dict[tuple[int, ...], HostExperts] = {}  # by where the weights are

    def __call__(
        self, module: nn.Module, part: ExpertPart, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """What a part makes of hidden [tokens, hidden size] whose experts are index, counting weights [tokens, k]."""
        places = tuple(tensor.data_ptr() for tensor in part.parameters.values() if tensor is not None)
        if (part.count, *places) not in self._known:
            tensors = {name: tensor.detach() for name, tensor in part.parameters.items() if tensor is not None}
            made = HostExperts.of(module, tensors, range(part.count), self._threads)
            self._known[part.count, *places] = made
        rows = torch.from_numpy(part.rows.numpy()[index.numpy()])
        return self._known[part.count, *places](hidden, rows, weights)
