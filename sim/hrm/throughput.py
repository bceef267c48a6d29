"""HRM's own prediction of a setup, to stand beside the simulated one: every resource at its peak, all overlapped.

T = max(link, GPU, CPU) per layer and decode step, N · n / (T · (n − 1)) summed over the layers (MoE-Lightning section
4.2 and its artifact): decode only, no prefill, no latencies, no order of work.
"""

from sim.cost import Setup
from sim.hrm.estimate import PolicyNumbers, busy_time, tokens_per_s
from sim.hrm.search import constants_of
from sim.problem import Layer, OptimizerConstants, Placement
from sim.schedule import Place


def hrm_tokens_per_s(setup: Setup) -> float | None:
    """HRM's throughput of the setup in tokens per second; None if there is no decode step to estimate."""
    gen_len = setup.problem.workload.gen_len
    if gen_len < 2:
        return None
    constants = constants_of(setup.problem.hardware)
    step_s = sum(_layer_s(setup, layer, constants) for layer in setup.problem.model.layers)
    return float(tokens_per_s(setup.policy.batch_size, gen_len, step_s))


def _layer_s(setup: Setup, layer: Layer, constants: OptimizerConstants) -> float:
    """One layer in one decode step. The optimizer counts attention at prompt + gen_len tokens of context."""
    policy, workload, model = setup.policy, setup.problem.workload, setup.problem.model
    activation_bytes = model.activation_bits / 8
    mu = policy.micro_batch_size
    context = layer.attended(round(workload.mean_prompt_tokens + workload.gen_len))
    experts = layer.num_experts * layer.expert_bytes(policy.widths(model).experts)
    width = layer.expert.intermediate_size if layer.expert else 0
    ffn_bytes = experts + mu * activation_bytes * (layer.hidden_size + width)
    ffn_flops = 2.0 * mu * layer.top_k * (layer.expert.weights if layer.expert else 0)
    attention = layer.attention
    attn_flops = 2.0 * mu * context * (attention.sent_query_width + attention.softmax_heads)
    kv_bytes = mu * (context * layer.kv_bytes_per_token(policy.cache_bits(model)) + attention.state_bytes)
    attn_bytes = kv_bytes + 2 * mu * activation_bytes * attention.sent_query_width
    link_bytes, on_gpu = float(_streamed_bytes(setup, layer)), policy.attention is Place.GPU
    if on_gpu:
        link_bytes += policy.num_micro_batches * kv_bytes * (1 - policy.kv_on_device)
    lengths, num_devices = (workload.mean_prompt_tokens, workload.gen_len), setup.problem.hardware.num_devices
    batch_size = mu * policy.num_micro_batches  # as if the last one were as large as the others
    numbers = PolicyNumbers(batch_size, mu, 0.0, *lengths, num_devices, attention_on_gpu=on_gpu)
    times = busy_time(numbers, constants, (attn_flops, attn_bytes), (ffn_flops, ffn_bytes), link_bytes)
    return float(times.total_s)


def _streamed_bytes(setup: Setup, layer: Layer) -> int:
    model = setup.problem.model
    placement = Placement.of(setup.policy, setup.schedule, model)
    return placement.streamed_bytes(placement.kinds[model.layers.index(layer)])
