"""Widths read off the tensors of a checkpoint: of each kind, what its tensors take, over the numbers that they hold."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from sim.problem.widths.modules import Module
from sim.problem.widths.widths import KINDS, Widths
from traces.errors import InputError

MOST_BITS = 64
"""Of a number, in the widest types that checkpoints have."""


MOST_DIFFERENCE = 0.01
"""Of the parameters in a file from those of the model: small vectors that one counts and the other does not."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor by its header."""

    name: str
    numbers: int
    """That its shape has: of packed formats so many words of several weights each."""
    size_bytes: int
    is_packed: bool = False
    """Whether the numbers of its shape are words of several weights."""


def tensors_of_model(tensors: Iterable[Tensor], num_layers: int) -> list[tuple[str, Tensor]]:
    """The tensors of a language model with their kinds, without layers that predict further tokens and other parts."""
    found = ((kind_of_tensor(tensor.name, num_layers), tensor) for tensor in tensors)
    return [(kind, tensor) for kind, tensor in found if kind]


def stored_widths(tensors: Iterable[Tensor], modules: Sequence[Module], num_layers: int, native: Widths) -> Widths:
    """The width of each kind, with its scales; of a kind without tensors that of the configuration, `native`.

    Raises InputError where the bytes of a kind are no width for the numbers that the model has of it.
    """
    size_bytes, numbers, is_packed = Counter[str](), Counter[str](), set[str]()
    for kind, tensor in tensors_of_model(tensors, num_layers):
        size_bytes[kind] += tensor.size_bytes
        if tensor.is_packed:
            is_packed.add(kind)
        elif not _SCALE.search(tensor.name):
            numbers[kind] += tensor.numbers
    expected = Counter[str]()
    for module in modules:
        expected[module.kind] += module.params
    found = {}
    for kind in KINDS:
        count = expected[kind] if kind in is_packed else numbers[kind]
        if size_bytes[kind] and count:
            found[kind] = 8 * size_bytes[kind] / count
            if not 1 <= found[kind] <= MOST_BITS:
                raise InputError(
                    f"its tensors of kind {kind} take {size_bytes[kind]:,} bytes, which cannot hold the {count:,} "
                    f"parameters that its configuration gives them: they are of different models"
                )
    return replace(native, **found)


def check_numbers(tensors: Iterable[Tensor], total_params: int, num_layers: int) -> None:
    """Refuse tensors that together hold another number of parameters than the model has."""
    found = tensors_of_model(tensors, num_layers)
    names = {tensor.name for _, tensor in found}
    twice = {name for name in names if name.replace("attn_kv_b", "attn_k_b") in names - {name}}
    there = sum(tensor.numbers for _, tensor in found if tensor.name not in twice)
    if abs(there - total_params) > MOST_DIFFERENCE * total_params:
        raise InputError(
            f"its tensors hold {there:,} parameters, where its fields make {total_params:,}: "
            f"this architecture is not read right, so it is refused"
        )


def kind_of_tensor(name: str, num_layers: int) -> str:
    """The kind of a tensor by its name, in Hugging Face's or llama.cpp's words; empty for what is not of the model."""
    if _OF_OTHER_PARTS.search(name):
        return ""
    layer = _LAYER.search(name)
    if layer is None:
        return next((kind for kind, pattern in _ENDS if pattern.search(name)), "")
    if int(layer[1]) >= num_layers:
        return ""
    inside = name[layer.end() :]
    return next(kind for kind, pattern in _INSIDE if pattern.search(inside))


_SCALE = re.compile(
    r"(scale|scales|scale_inv|scale_2|_scales|qzeros|zeros|zero_point|weight_shape|g_idx|absmax|quant_map|SCB"
    r"|weight_format|quant_state\.\w+|(?<=\.)biases|global_scale|zero_scale)$"
)
"""What belongs to the weights of another tensor: scales, zero points and the like."""

_OF_OTHER_PARTS = re.compile(
    r"(^|\.)(mtp|nextn|visual|vision\w*|vit|audio\w*|speech\w*|multi_modal_projector|mm_projector|connector|talker"
    r"|code2wav|token2wav|patch_embed)\.|^(mm|v|a)\.|rotary_emb|inv_freq|eh_proj|rope_freqs|rope_factors"
)
"""Encoders of other modalities, layers that predict further tokens, tables of the positional encoding."""

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|blk|block)\.(\d+)\.")

_ENDS = (
    ("embedding", re.compile(r"(embed_tokens|token_embd|tok_embeddings|word_embeddings|wte|embed_in|embeddings?)\.")),
    ("embedding", re.compile(r"^embed\.weight")),
    ("head", re.compile(r"(^|\.)(lm_head|output|embed_out|head)\.")),
    ("router", re.compile(r"norm|ln_f")),
)
"""Outside layers."""

_INSIDE = (
    ("router", re.compile(r"shared_expert_gate|_inp_shexp|_inp\.|exp_probs_b|e_score_correction|expert_bias|tid2eid")),
    ("shared", re.compile(r"shared?_expert|shared_mlp|_shexp")),
    ("experts", re.compile(r"(^|[._])experts?\.|_exps\.|switch_mlp|block_sparse_moe\.(in|out)put_linear|_chexps")),
    ("experts", re.compile(r"experts\.")),
    ("router", re.compile(r"router|(^|\.)gate\.(weight|bias|tid2eid)|(^|\.)gate\.\w*(scale|zeros)")),
    ("router", re.compile(r"^(attn_norm|ffn_norm|post_attention_norm|post_ffw_norm|attn_post_norm|layer_output_norm)")),
    ("dense", re.compile(r"^mixer\.(up|down|gate)_proj")),
    ("attention", re.compile(r"attn\.|attention\.|^attn|^ssm|mamba|mixer|conv|linear_attn|indexer|time_mix")),
    ("router", re.compile(r"norm|layernorm|ln_\d")),
    ("dense", re.compile(r"mlp|feed_forward|ffn|\bw[123]\b")),
    ("router", re.compile("")),
)
"""Inside layers, the first that fits."""
