"""HRM's own prediction of a setup, to stand beside the simulated one: every resource at its peak, all overlapped.

T = max(link, GPU, CPU) per layer and decode step, N · n / (T · (n − 1)) summed over the layers (MoE-Lightning section
4.2 and its artifact): decode only, no prefill, no latencies, no order of work.
"""

from typing import NamedTuple

from sim.cost import Setup
from sim.problem import Hardware, Layer
from sim.schedule import Place


class _Peaks(NamedTuple):
    """The rates that HRM is given, all devices together."""

    gpu_flops_per_s: float
    gpu_bytes_per_s: float
    cpu_flops_per_s: float
    cpu_bytes_per_s: float
    link_bytes_per_s: float


def _peaks(hardware: Hardware) -> _Peaks:
    """The paper's constants on the paper's machines (its link is not multiplied by the devices), else data sheets."""
    n, paper = hardware.num_devices, hardware.optimizer
    if paper is not None:
        return _Peaks(
            paper.gpu_peak_flops_per_s * n,
            paper.gpu_bandwidth_bytes_per_s * n,
            paper.cpu_peak_flops_per_s,
            paper.cpu_bandwidth_bytes_per_s,
            paper.link_bytes_per_s,
        )
    return _Peaks(
        hardware.device.peak_flops_per_s * n,
        hardware.device_memory.bandwidth_bytes_per_s * n,
        hardware.host.peak_flops_per_s,
        hardware.host_memory.bandwidth_bytes_per_s,
        hardware.link.peak_bytes_per_s * n,
    )


def hrm_tokens_per_s(setup: Setup) -> float | None:
    """HRM's throughput of the setup in tokens per second; None if there is no decode step to estimate."""
    gen_len = setup.problem.workload.gen_len
    if gen_len < 2:
        return None
    peaks = _peaks(setup.problem.hardware)
    step_s = sum(_layer_s(setup, layer, peaks) for layer in setup.problem.model.layers)
    return setup.policy.batch_size * gen_len / (step_s * (gen_len - 1))


def _layer_s(setup: Setup, layer: Layer, peaks: _Peaks) -> float:
    """One layer in one decode step. The optimizer counts attention at prompt + gen_len tokens of context."""
    policy, workload, model = setup.policy, setup.problem.workload, setup.problem.model
    activation_bytes = model.activation_bits / 8
    n, mu = policy.num_micro_batches, policy.micro_batch_size
    context = layer.attended(round(workload.mean_prompt_tokens + workload.gen_len))
    experts = layer.num_experts * layer.expert_bytes(policy.expert_bits(model))
    width = layer.expert.intermediate_size if layer.expert else 0
    ffn_bytes = experts + mu * activation_bytes * (layer.hidden_size + width)
    ffn_flops = 2.0 * mu * layer.top_k * (layer.expert.weights if layer.expert else 0)
    attention = layer.attention
    attn_flops = 2.0 * mu * context * (attention.sent_query_width + attention.num_query_heads)
    kv_bytes = mu * context * layer.kv_bytes_per_token(policy.cache_bits(model))
    attn_bytes = kv_bytes + 2 * mu * activation_bytes * attention.sent_query_width
    gpu_s = n * max(ffn_flops / peaks.gpu_flops_per_s, ffn_bytes / peaks.gpu_bytes_per_s)
    cpu_s, link_bytes = 0.0, float(policy.streamed_bytes(setup.schedule, model, layer))
    if policy.attention is Place.CPU:
        cpu_s = n * max(attn_flops / peaks.cpu_flops_per_s, attn_bytes / peaks.cpu_bytes_per_s)
    else:
        gpu_s += n * max(attn_flops / peaks.gpu_flops_per_s, attn_bytes / peaks.gpu_bytes_per_s)
        link_bytes += n * kv_bytes * (1 - policy.kv_on_device)
    return max(link_bytes / peaks.link_bytes_per_s, gpu_s, cpu_s)
