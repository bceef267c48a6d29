from .family import XlaFamily as XlaFamily
from .layers import (
    attend_cached as attend_cached,
    attend_prompt as attend_prompt,
    begin_cache as begin_cache,
    embed as embed,
    head as head,
    post_attn as post_attn,
    pre_attn as pre_attn,
)
from .parameters import LayerLayout as LayerLayout, LayerParameters as LayerParameters, ParameterPiece as ParameterPiece
