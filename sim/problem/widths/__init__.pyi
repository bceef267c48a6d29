from .apart import (
    FORMS as FORMS,
    MAX_BITS as MAX_BITS,
    MIN_BITS as MIN_BITS,
    WeightBits as WeightBits,
    WidthsApart as WidthsApart,
    check_weight_bits as check_weight_bits,
    weight_bits_text as weight_bits_text,
)
from .gguf_names import gguf_widths as gguf_widths
from .modules import Module as Module, mean_widths as mean_widths
from .quantisers import native_widths as native_widths, plain_bits as plain_bits
from .tensors import Tensor as Tensor, check_numbers as check_numbers, stored_widths as stored_widths
from .widths import KINDS as KINDS, Widths as Widths, packed_bytes as packed_bytes
