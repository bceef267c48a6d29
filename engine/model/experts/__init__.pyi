from .placed import (
    IMPLEMENTATION as IMPLEMENTATION,
    ExpertPart as ExpertPart,
    PartCode as PartCode,
    PlacedExperts as PlacedExperts,
    all_pairs as all_pairs,
    can_split as can_split,
    expert_rows as expert_rows,
    host_waits as host_waits,
    kept_experts as kept_experts,
    lean_gates as lean_gates,
    own_pairs as own_pairs,
    rows_are_known as rows_are_known,
    with_experts as with_experts,
    with_forward as with_forward,
)
from .shared import shared_apart as shared_apart
