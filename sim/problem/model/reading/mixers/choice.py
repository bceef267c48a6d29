"""Which reader a layer's mixer has."""

from sim.problem.model.attention import Attention, NoAttention, SeveralAttentions
from sim.problem.model.reading.families import Family
from sim.problem.model.reading.fields import Fields
from sim.problem.model.reading.kinds import Kind
from sim.problem.model.reading.mixers.heads import head_attention
from sim.problem.model.reading.mixers.latent import compressed_attention, latent_attention
from sim.problem.model.reading.mixers.recurrent import recurrent


def mixer_of(fields: Fields, family: Family, kind: Kind, index: int) -> Attention:
    """What mixes the tokens of a layer of this kind; `fields` are those of the layer."""
    if kind is Kind.NONE:
        return NoAttention(fields.count("hidden_size"))
    if kind is Kind.LINEAR:
        return recurrent(fields, family)
    if family.name == "deepseek_v4":
        return compressed_attention(fields, index)
    read = latent_attention if "kv_lora_rank" in fields else head_attention
    one = read(fields, family, kind, index)
    return SeveralAttentions((one, one)) if family.attends_twice else one
