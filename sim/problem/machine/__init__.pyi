from .hardware import (
    AtTokens as AtTokens,
    Efficiency as Efficiency,
    Emulation as Emulation,
    Hardware as Hardware,
    Link as Link,
    Memory as Memory,
    OptimizerConstants as OptimizerConstants,
    Processor as Processor,
)
from .quantity import Basis as Basis, Dimension as Dimension, Quantity as Quantity
