from .fields import MOST_REQUESTS as MOST_REQUESTS
from .placement import Placement as Placement
from .policy import LOCK_UNIT_BYTES as LOCK_UNIT_BYTES, Policy as Policy, read_policy_file as read_policy_file
from .splits import Split as Split, splits_of as splits_of
from .unpacking import (
    are_unpacked as are_unpacked,
    unpacked_at_once as unpacked_at_once,
    unpacked_experts as unpacked_experts,
    unpacks_experts as unpacks_experts,
)
