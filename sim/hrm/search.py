"""The paper's own policy search: the Hierarchical Roofline Model over micro-batch sizes and numbers of micro-batches.

MoE-Lightning (arXiv 2411.11217), section 4.2, as its artifact does it (caoshiyi/artifacts, branch asplos25,
`optimizer.py`): attention on the CPU unless asked otherwise, weights in fp16, decode only. μ runs through 1, 2, 3, 4,
36, 68, ...; for each the number of micro-batches goes up while it fits and throughput does not fall, and r_w is the
largest that fits the device, which is what the artifact's linear program comes to. What is equal goes to the larger
batch. The program reads layer times from its solver with eight digits, and where the device binds, so that all numbers
of micro-batches are equal, these decide when throughput falls: without them some of the published policies would not
come out.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, count

import numpy as np
from numpy.typing import NDArray

from sim.hrm.estimate import (
    CPU_MEMORY_SHARE,
    GPU_MEMORY_SHARE,
    LayerTime,
    MoEDims,
    PolicyNumbers,
    cpu_memory_bytes,
    dims_of,
    gpu_memory_bytes,
    largest_weight_share,
    layer_time,
)
from sim.problem import Basis, Hardware, Model, OptimizerConstants, Policy, Quantity, Workload
from sim.schedule import Place
from traces.errors import InputError

SCHEDULE = "cgopipe"
"""The schedule that the search is for."""

SOLVER_DIGITS = 8
"""Digits of a number in the solver's file."""

ROOMY_DEVICE_BYTES = 16 * 2**30
"""Above it (an L4, not a T4) the artifact plans padded prompts without the whole batch's hidden states."""

MIN_LAYERS = 3
"""With fewer, a layer that stays is no larger than the two buffers that it saves: r_w means nothing."""


@dataclass(frozen=True, slots=True)
class HrmChoice:
    """The policy that HRM expects most of, and what it expects: seconds per layer of a decode step, and tokens/s."""

    policy: Policy
    """Its `experts_on_device` is r_w, of the experts' bytes; whole experts only are ever resident."""
    times: LayerTime
    tokens_per_s: float
    """Of decode alone, every rate at its peak: it ranks policies and is 1.8 to 6.4 times what was measured."""
    candidates: int
    """Policies that were rated."""

    @property
    def layer_s(self) -> float:
        """T = max(link, GPU, CPU)."""
        return float(self.times.total_s)

    @property
    def bottleneck(self) -> str:
        """What takes T: `link`, `gpu` or `cpu`."""
        return max(("link", "gpu", "cpu"), key=lambda name: float(getattr(self.times, f"{name}_s")))


@dataclass(frozen=True, slots=True)
class _Rated:
    """All numbers of micro-batches, from 1, of one μ that fit, up to where throughput falls."""

    policies: PolicyNumbers
    tokens_per_s: NDArray[np.float64]
    """Never falling, so that the last is the best."""


def search_policies(
    model: Model,
    hardware: Hardware,
    workload: Workload,
    *,
    whole_batch_in_prefill: bool | None = None,
    attention: Place = Place.CPU,
) -> HrmChoice:
    """Return the paper's policy. Prompts count with their average, or the longest when padded, in whole tokens.

    `whole_batch_in_prefill` says whether prefill keeps the hidden states of all prompts on the device; None decides as
    the artifact: it does, unless prompts are padded and the device is larger than a T4. With `attention` on the device
    the whole KV cache is there too, as in the case study of the paper's figure 10.
    Raises InputError where no policy fits, with the memory, and for a model or a workload that the search cannot rate.
    """
    constants, dims = constants_of(hardware), _dims(model)
    if whole_batch_in_prefill is None:
        whole_batch_in_prefill = not (workload.padded and constants.gpu_memory_bytes > ROOMY_DEVICE_BYTES)
    asked = PolicyNumbers(
        batch_size=1.0,
        micro_batch_size=1.0,
        weight_share=0.0,
        prompt_len=round(workload.mean_prompt_tokens),
        gen_len=workload.gen_len,
        num_devices=hardware.num_devices,
        whole_batch_in_prefill=whole_batch_in_prefill,
        attention_on_gpu=attention is Place.GPU,
    )
    rated = list(_rate_all(dims, asked, constants))
    if not rated:
        raise InputError(f"optimizer hrm: no policy fits {hardware.name}: {_shortage(dims, asked, constants)}")
    best = max(reversed(rated), key=lambda one: float(one.tokens_per_s[-1]))  # of equal ones the larger batch
    return _choice(dims, best, constants, sum(one.tokens_per_s.size for one in rated))


def constants_of(hardware: Hardware) -> OptimizerConstants:
    """The constants of the paper's optimizer where the machine has them, else its theoretical peaks and capacities.

    The artifact does not multiply the link by the number of devices; without its constants, the links add up.
    """
    if hardware.optimizer is not None:
        return hardware.optimizer
    links = hardware.link.peak_bytes_per_s * hardware.num_devices
    return OptimizerConstants(
        gpu_memory_bytes=hardware.device_memory.capacity_bytes,
        gpu_bandwidth_bytes_per_s=hardware.device_memory.bandwidth_bytes_per_s,
        gpu_peak_flops_per_s=hardware.device.peak_flops_per_s,
        cpu_memory_bytes=hardware.host_memory.capacity_bytes,
        cpu_bandwidth_bytes_per_s=hardware.host_memory.bandwidth_bytes_per_s,
        cpu_peak_flops_per_s=hardware.host.peak_flops_per_s,
        link_bytes_per_s=Quantity(links, "B/s", Basis.ASSUMED, f"link.peak of {hardware.num_devices} devices"),
    )


def micro_batch_sizes() -> Iterator[int]:
    """The micro-batch sizes that the artifact tries, without end: 1, 2, 3, 4, 36, 68, 100, ..."""
    return chain((1, 2, 3), count(4, 32))


def _dims(model: Model) -> MoEDims:
    if not model.num_experts:
        raise InputError(f"optimizer hrm: {model.name} has no experts; the search is for Mixture-of-Experts models")
    if model.num_layers < MIN_LAYERS:
        raise InputError(f"optimizer hrm: {model.name} has {model.num_layers} layers; it needs at least {MIN_LAYERS}")
    return dims_of(model)


def _rate_all(dims: MoEDims, asked: PolicyNumbers, constants: OptimizerConstants) -> Iterator[_Rated]:
    for size in micro_batch_sizes():
        rated = _rate(dims, asked, size, constants)
        if rated is None:
            return
        yield rated


def _rate(dims: MoEDims, asked: PolicyNumbers, size: int, constants: OptimizerConstants) -> _Rated | None:
    """Rate one μ; None if not even one micro-batch fits."""
    counts = np.arange(1, _most_requests(dims, asked, constants) // size + 2, dtype=float)
    policies = replace(asked, micro_batch_size=float(size), batch_size=size * counts)
    shares = largest_weight_share(dims, policies, constants)
    policies = replace(policies, weight_share=np.maximum(shares, 0.0))
    host_fits = cpu_memory_bytes(dims, policies) <= CPU_MEMORY_SHARE * constants.cpu_memory_bytes
    most = _leading(np.asarray((shares >= 0) & host_fits))
    if not most:
        return None
    layer_s = np.asarray(layer_time(dims, policies, constants).total_s)[:most]
    read_s = np.array([float(f"{seconds:.{SOLVER_DIGITS}g}") for seconds in layer_s])
    batch = np.asarray(policies.batch_size)[:most]
    rates = batch * asked.gen_len / (read_s * (asked.gen_len - 1) * dims.n_layers)
    return _Rated(policies, rates[: 1 + _leading(rates[1:] >= rates[:-1])])


def _most_requests(dims: MoEDims, asked: PolicyNumbers, constants: OptimizerConstants) -> int:
    """More requests than this do not fit the host, even without any weights there."""
    one = cpu_memory_bytes(dims, replace(asked, batch_size=1.0, weight_share=1.0))
    return int(CPU_MEMORY_SHARE * constants.cpu_memory_bytes / float(one))


def _leading(holds: NDArray[np.bool_]) -> int:
    """How many of the first hold without a gap."""
    return int(holds.argmin()) if not holds.all() else holds.size


def _choice(dims: MoEDims, best: _Rated, constants: OptimizerConstants, candidates: int) -> HrmChoice:
    """The best policy of one μ."""
    count, size = best.tokens_per_s.size, int(best.policies.micro_batch_size)
    share = float(np.asarray(best.policies.weight_share)[count - 1])
    place = Place.GPU if best.policies.attention_on_gpu else Place.CPU
    times = layer_time(dims, replace(best.policies, batch_size=float(size * count), weight_share=share), constants)
    policy = Policy(size * count, size, place, share, kv_on_device=float(place is Place.GPU))
    return HrmChoice(policy, times, float(best.tokens_per_s[-1]), candidates)


def _shortage(dims: MoEDims, one: PolicyNumbers, constants: OptimizerConstants) -> str:
    """Which memory a single request is short of, by the optimizer's own counting."""
    room = GPU_MEMORY_SHARE * constants.gpu_memory_bytes * one.num_devices
    lack = float(gpu_memory_bytes(dims, one)) - room
    if lack > 0:
        return f"one request is short of {lack / 1e9:.2f} GB of device memory (it plans with {GPU_MEMORY_SHARE:.0%})"
    most = replace(one, weight_share=largest_weight_share(dims, one, constants))
    lack = float(cpu_memory_bytes(dims, most)) - CPU_MEMORY_SHARE * constants.cpu_memory_bytes
    return f"one request is short of {lack / 1e9:.2f} GB of host memory (it plans with {CPU_MEMORY_SHARE:.0%})"
