from .accelerator import Accelerator as Accelerator
from .base import Device as Device, LaneContext as LaneContext, Mark as Mark
from .emulated import EmulatedDevice as EmulatedDevice
from .energy import (
    DEVICE as DEVICE,
    HOST as HOST,
    HOST_MEMORY as HOST_MEMORY,
    EnergyCounter as EnergyCounter,
    EnergyCounters as EnergyCounters,
    EnergyMeter as EnergyMeter,
    EnergyUse as EnergyUse,
    NoCounterError as NoCounterError,
    counters_of as counters_of,
)
from .host_memory import (
    ALIGNMENT_BYTES as ALIGNMENT_BYTES,
    aligned_bytes as aligned_bytes,
    return_freed_memory as return_freed_memory,
)
from .ledger import Ledger as Ledger, OutOfMemory as OutOfMemory, PinnedOutOfMemory as PinnedOutOfMemory
from .open import (
    DeviceAsked as DeviceAsked,
    add_device as add_device,
    device_asked as device_asked,
    device_of as device_of,
    host_memory_bytes as host_memory_bytes,
    make_device as make_device,
    open_device as open_device,
)
from .ranks import (
    PeerLostError as PeerLostError,
    Rank as Rank,
    RankError as RankError,
    RankSums as RankSums,
    Rendezvous as Rendezvous,
    is_peer_lost as is_peer_lost,
    join_group as join_group,
    keep_to_share as keep_to_share,
    run_in_ranks as run_in_ranks,
    started_by_torchrun as started_by_torchrun,
)
from .threads import (
    check_thread_count as check_thread_count,
    for_now as for_now,
    intra_op_threads as intra_op_threads,
    usable_count as usable_count,
)
from .xla import (
    Callback as Callback,
    XlaDevice as XlaDevice,
    XlaLane as XlaLane,
    measure_callback as measure_callback,
)
