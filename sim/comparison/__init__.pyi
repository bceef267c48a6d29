from .comparison import (
    Asked as Asked,
    Outcome as Outcome,
    compare as compare,
    input_hash as input_hash,
    inputs as inputs,
    project_version as project_version,
)
from .listing import print_hardware as print_hardware, print_known as print_known
from .picture import draw as draw
from .report import print_comparison as print_comparison
