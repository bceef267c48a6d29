"""The Hierarchical Roofline Model: how fast work can run on one level of a machine with data from another, and why.

MoE-Lightning (arXiv 2411.11217): section 3.2, equations 4 to 11, for the roofs and turning points; figures 4 and 5
for how FLOPs and bytes are counted; section 4.2 and the artifact's optimizer for the estimate that ranks policies.
Every amount may be a float or a numpy array, so that whole grids of policies take one call.
"""

from dataclasses import dataclass, replace

import numpy as np

from sim.hrm.roofs import Amount
from sim.problem import Model, OptimizerConstants
from traces.errors import InputError

Work = tuple[Amount, Amount]
"""FLOPs, and bytes moved."""

GPU_MEMORY_SHARE = 0.86
"""Share of the device's memory that the paper's optimizer plans with."""

CPU_MEMORY_SHARE = 0.8
"""Share of the host's memory that the paper's optimizer plans with."""


@dataclass(frozen=True, slots=True)
class MoEDims:
    """The dimensions of a model in the paper's letters.

    Layers l; hidden size h1; expert width h2; query and KV heads n_q, n_kv; experts n_e, k of them a token.
    """

    n_layers: int
    h1: int
    h2: int
    n_q: int
    n_kv: int
    n_e: int
    k: int
    head_dim: int | None = None
    """Where it is not h1 / n_q."""
    cached_width: int | None = None
    """Numbers cached of one token and layer, where they are not keys and values of n_kv heads (MLA)."""

    @property
    def query_width(self) -> float:
        return self.h1 if self.head_dim is None else self.n_q * self.head_dim

    @property
    def kv_width(self) -> float:
        return self.cached_width or 2 * self.n_kv * self.query_width / self.n_q

    @property
    def expert_bytes(self) -> float:
        """All experts of one layer in fp16: w_i of the optimizer."""
        return 6.0 * self.h1 * self.h2 * self.n_e


def attention_flops(dims: MoEDims, batch: Amount, context: Amount, queries: Amount = 1.0) -> Amount:
    """FLOPs of softmax attention as the paper counts them: query times key, and the softmax; not the values."""
    return 2 * batch * queries * context * dims.query_width + 2 * batch * queries * context * dims.n_q


def attention_bytes(dims: MoEDims, batch: Amount, context: Amount, queries: Amount = 1.0, bits: float = 16.0) -> Amount:
    """Bytes that attention touches: queries, results and the KV cache, all in `bits`."""
    return bits / 8 * (2 * batch * queries * dims.query_width + batch * context * dims.kv_width)


def attention_intensity(dims: MoEDims, context: Amount, bits: float = 16.0) -> Amount:
    """FLOP per byte of decode attention; any batch has the same."""
    return attention_flops(dims, 1.0, context) / attention_bytes(dims, 1.0, context, bits=bits)


def ffn_flops(dims: MoEDims, tokens: Amount) -> Amount:
    """FLOPs of one layer's experts: three matrices, k experts a token."""
    return 2.0 * tokens * dims.h1 * dims.h2 * 3 * dims.k


def ffn_bytes(dims: MoEDims, tokens: Amount) -> Amount:
    """Bytes that one layer's experts touch: every expert once, and activations in fp16."""
    return 2.0 * tokens * dims.h1 + 2.0 * tokens * dims.h2 + dims.expert_bytes


def ffn_intensity(dims: MoEDims, tokens: Amount) -> Amount:
    """FLOP per byte of one layer's experts over that many tokens."""
    return ffn_flops(dims, tokens) / ffn_bytes(dims, tokens)


def ffn_tokens(dims: MoEDims, intensity: float) -> float:
    """Tokens at which the experts reach `intensity`; infinite when activations keep them below it."""
    gained_per_token = ffn_flops(dims, 1.0) - intensity * (ffn_bytes(dims, 1.0) - ffn_bytes(dims, 0.0))
    return float(intensity * dims.expert_bytes / gained_per_token) if gained_per_token > 0 else float("inf")


@dataclass(frozen=True, slots=True)
class PolicyNumbers:
    """What the paper's optimizer is asked about: batch N, micro-batch μ, share r_w of the experts on the device.

    The fields of the policy may be arrays. The prompt length s is the average, or the longest when padded.
    """

    batch_size: Amount
    micro_batch_size: Amount
    weight_share: Amount
    prompt_len: float
    gen_len: int
    num_devices: int = 1
    whole_batch_in_prefill: bool = True
    """Prefill keeps the hidden states of all N prompts on the device, as in the artifact (unless padded, on L4)."""
    attention_on_gpu: bool = False
    """Attention runs on the device and the whole KV cache is there: the other choice in the case study of figure 10."""

    def __post_init__(self) -> None:
        if self.gen_len < 2:
            raise InputError(f"gen_len: {self.gen_len} leaves no decode step to estimate; it must be 2 or more")

    @property
    def num_micro_batches(self) -> Amount:
        return self.batch_size / self.micro_batch_size


@dataclass(frozen=True, slots=True)
class LayerTime:
    """Seconds that each resource is busy in one decode step of one layer; the slowest sets the pace."""

    link_s: Amount
    gpu_s: Amount
    cpu_s: Amount

    @property
    def total_s(self) -> Amount:
        return np.maximum(np.maximum(self.link_s, self.gpu_s), self.cpu_s)


def layer_time(dims: MoEDims, policy: PolicyNumbers, constants: OptimizerConstants) -> LayerTime:
    """Estimate one layer of one decode step, T = max(link, GPU, CPU) (section 4.2)."""
    micro_batch, context = policy.micro_batch_size, policy.prompt_len + policy.gen_len
    attention = attention_flops(dims, micro_batch, context), attention_bytes(dims, micro_batch, context)
    experts = ffn_flops(dims, micro_batch), ffn_bytes(dims, micro_batch)
    link_bytes = dims.expert_bytes * (1 - policy.weight_share)
    return busy_time(policy, constants, attention, experts, link_bytes)


def busy_time(
    policy: PolicyNumbers, constants: OptimizerConstants, attention: Work, experts: Work, link_bytes: Amount
) -> LayerTime:
    """The times of a layer of such attention and experts a micro-batch, while `link_bytes` stream.

    `num_devices` multiplies the device's rates; the link's rate is the host's, as in the artifact.
    """
    gpu_flops_per_s = constants.gpu_peak_flops_per_s * policy.num_devices
    gpu_bytes_per_s = constants.gpu_bandwidth_bytes_per_s * policy.num_devices
    (flops, moved), (ffn, ffn_moved) = attention, experts
    gpu_s, cpu_s = np.maximum(ffn / gpu_flops_per_s, ffn_moved / gpu_bytes_per_s), 0.0 * flops
    if policy.attention_on_gpu:
        gpu_s = gpu_s + np.maximum(flops / gpu_flops_per_s, moved / gpu_bytes_per_s)
    else:
        cpu_s = np.maximum(flops / constants.cpu_peak_flops_per_s, moved / constants.cpu_bandwidth_bytes_per_s)
    n = policy.num_micro_batches
    return LayerTime(link_bytes / constants.link_bytes_per_s, n * gpu_s, n * cpu_s)


def tokens_per_s(batch_size: Amount, gen_len: int, layer_s: Amount, n_layers: int = 1) -> Amount:
    """Estimate N·n / (T·(n − 1)·l): it ranks policies and is 1.8 to 6.4 times what was measured."""
    return batch_size * gen_len / (layer_s * (gen_len - 1) * n_layers)


def gpu_memory_bytes(dims: MoEDims, policy: PolicyNumbers) -> Amount:
    """Bytes that the optimizer counts on all devices together, at their peak in prefill or decode."""
    tp, s, micro_batch = policy.num_devices, policy.prompt_len, policy.micro_batch_size
    attention_weights = (4.0 * dims.h1 * dims.query_width + 2.0 * dims.h1 * dims.kv_width) * dims.n_layers
    resident = attention_weights + dims.expert_bytes * dims.n_layers * policy.weight_share
    kv = 4 * s * dims.kv_width * micro_batch
    hidden = 8 * dims.h1 * micro_batch * s
    if policy.whole_batch_in_prefill:
        hidden = tp * (4 * dims.h1 * micro_batch * s + 2 * dims.h1 * policy.batch_size * s)
    cache = kv_cache_bytes(dims, policy) if policy.attention_on_gpu else 0.0
    home = resident + np.maximum(hidden + kv, 4 * dims.h1 * policy.batch_size * tp + cache)
    intermediate = 2.4 * micro_batch * s * dims.k * (dims.h1 * tp + 3 * dims.h2)
    return home + 2 * dims.expert_bytes * (1 - policy.weight_share) + intermediate


def kv_cache_bytes(dims: MoEDims, policy: PolicyNumbers) -> Amount:
    """Bytes of the KV cache of the whole batch at the end of the generation, in fp16."""
    context = policy.prompt_len + policy.gen_len
    return 2 * context * dims.kv_width * policy.batch_size * dims.n_layers


def cpu_memory_bytes(dims: MoEDims, policy: PolicyNumbers) -> Amount:
    """Bytes that the optimizer counts on the host: streamed experts, KV cache, hidden states, two layers' staging."""
    s, batch, streamed = policy.prompt_len, policy.batch_size, dims.expert_bytes * (1 - policy.weight_share)
    cache = 0.0 if policy.attention_on_gpu else kv_cache_bytes(dims, policy)
    return streamed * dims.n_layers + cache + 2 * dims.h1 * batch * s * policy.num_devices + 2 * streamed


def largest_weight_share(dims: MoEDims, policy: PolicyNumbers, constants: OptimizerConstants) -> Amount:
    """Return the r_w that fills the device's memory, whatever `policy` says; negative when even r_w = 0 is too much.

    From r_w = 0 to 1 the resident experts grow by l layers and the double buffer shrinks by 2.
    """
    empty = gpu_memory_bytes(dims, replace(policy, weight_share=0.0))
    room = GPU_MEMORY_SHARE * constants.gpu_memory_bytes * policy.num_devices - empty
    return np.minimum(room / (dims.expert_bytes * (dims.n_layers - 2)), 1.0)


def dims_of(model: Model) -> MoEDims:
    """Return the paper's letters for a model: of its commonest layer with experts, full attention first.

    Where these lie in layers of their own, attention is that of the commonest layer with a KV cache.
    """
    cached = [layer for layer in model.layers if layer.attention.cached_width]
    if not cached:
        raise InputError(f"{model.name} keeps no KV cache: HRM knows layers with attention alone")
    attending = max(cached, key=lambda one: (bool(one.expert), one.attention.window is None, cached.count(one)))
    layer = attending if attending.expert else max(model.layers, key=lambda one: (one.num_experts, one.top_k))
    attention = attending.attention
    return MoEDims(
        n_layers=model.num_layers,
        h1=layer.hidden_size,
        h2=layer.expert.intermediate_size if layer.expert else 0,
        n_q=attention.softmax_heads,
        n_kv=round(attention.softmax_heads / attention.group),
        n_e=layer.num_experts,
        k=layer.top_k,
        head_dim=attention.sent_query_width // attention.softmax_heads,
        cached_width=attention.cached_width,
    )
