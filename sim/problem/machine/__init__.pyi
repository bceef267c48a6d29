from .chips import NO_TILES as NO_TILES, Network as Network, Tiles as Tiles
from .derived import kept_on_host_bytes as kept_on_host_bytes, page_lockable_bytes as page_lockable_bytes
from .detect import core_limit as core_limit, memory_limit as memory_limit
from .hardware import (
    AtTokens as AtTokens,
    DeviceProcessor as DeviceProcessor,
    Efficiency as Efficiency,
    Emulation as Emulation,
    Hardware as Hardware,
    Host as Host,
    Link as Link,
    Memory as Memory,
    OptimizerConstants as OptimizerConstants,
    Processor as Processor,
    Reserve as Reserve,
)
from .power import (
    LAW_OF_CAPS as LAW_OF_CAPS,
    Power as Power,
    ProcessorPower as ProcessorPower,
    RestPower as RestPower,
    TransferPower as TransferPower,
)
from .quantity import Basis as Basis, Dimension as Dimension, Quantity as Quantity
