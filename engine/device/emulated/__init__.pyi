from .device import EmulatedDevice as EmulatedDevice
from .threads import check_thread_count as check_thread_count, intra_op_threads as intra_op_threads
