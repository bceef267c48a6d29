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
from itertools import chain, count, takewhile

import numpy as np
from numpy.typing import NDArray

from sim.hrm import estimate
from sim.hrm.estimate import LayerTime, MoEDims, PolicyNumbers
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
    lengths = (round(workload.mean_prompt_tokens), workload.gen_len)
    asked = PolicyNumbers(1.0, 1.0, 0.0, *lengths, hardware.num_devices, whole_batch_in_prefill, attention is Place.GPU)
    by_size = (_rate(dims, asked, size, constants) for size in micro_batch_sizes())
    rated = list(takewhile(lambda one: one.tokens_per_s.size, by_size))
    if not rated:
        raise InputError(f"optimizer hrm: no policy fits {hardware.name}: {_shortage(dims, asked, constants)}")
    best = max(reversed(rated), key=lambda one: float(one.tokens_per_s[-1]))  # of equal ones the larger batch
    count, size = best.tokens_per_s.size, int(best.policies.micro_batch_size)
    share = float(np.asarray(best.policies.weight_share)[count - 1])
    chosen = replace(best.policies, batch_size=float(size * count), weight_share=share)
    policy = Policy(size * count, size, attention, share, kv_on_device=float(attention is Place.GPU))
    candidates = sum(one.tokens_per_s.size for one in rated)
    return HrmChoice(policy, estimate.layer_time(dims, chosen, constants), float(best.tokens_per_s[-1]), candidates)


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
    return estimate.dims_of(model)


def _rate(dims: MoEDims, asked: PolicyNumbers, size: int, constants: OptimizerConstants) -> _Rated:
    """Rate one μ: nothing if not even one micro-batch fits."""
    room = estimate.CPU_MEMORY_SHARE * constants.cpu_memory_bytes
    one = estimate.cpu_memory_bytes(dims, replace(asked, weight_share=1.0))  # even without any weights there
    most_requests = int(room / float(one))
    counts = np.arange(1, most_requests // size + 2, dtype=float)
    policies = replace(asked, micro_batch_size=float(size), batch_size=size * counts)
    shares = estimate.largest_weight_share(dims, policies, constants)
    policies = replace(policies, weight_share=np.maximum(shares, 0.0))
    most = _leading(np.asarray((shares >= 0) & (estimate.cpu_memory_bytes(dims, policies) <= room)))
    layer_s = np.asarray(estimate.layer_time(dims, policies, constants).total_s)[:most]
    read_s = np.array([float(f"{seconds:.{SOLVER_DIGITS}g}") for seconds in layer_s])
    batch = np.asarray(policies.batch_size)[:most]
    rates = np.asarray(estimate.tokens_per_s(batch, asked.gen_len, read_s, dims.n_layers))
    return _Rated(policies, rates[: 1 + _leading(rates[1:] >= rates[:-1])])


def _leading(holds: NDArray[np.bool_]) -> int:
    """How many of the first hold without a gap."""
    return int(holds.argmin()) if not holds.all() else holds.size


def _shortage(dims: MoEDims, one: PolicyNumbers, constants: OptimizerConstants) -> str:
    """Which memory a single request is short of, by the optimizer's own counting."""
    tier, share = "device", estimate.GPU_MEMORY_SHARE
    lack = float(estimate.gpu_memory_bytes(dims, one)) - share * constants.gpu_memory_bytes * one.num_devices
    if lack <= 0:
        tier, share = "host", estimate.CPU_MEMORY_SHARE
        most = replace(one, weight_share=estimate.largest_weight_share(dims, one, constants))
        lack = float(estimate.cpu_memory_bytes(dims, most)) - share * constants.cpu_memory_bytes
    return f"one request is short of {lack / 1e9:.2f} GB of {tier} memory (it plans with {share:.0%})"
