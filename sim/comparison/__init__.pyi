from .comparison import (
    SIZES as SIZES,
    Asked as Asked,
    Comparison as Comparison,
    Outcome as Outcome,
    compare as compare,
    input_hash as input_hash,
    inputs as inputs,
)
from .listing import print_hardware as print_hardware, print_known as print_known
from .picture import draw as draw
from .report import print_comparison as print_comparison
