from .attending import attending_beside as attending_beside
from .candidates import TIERS as TIERS, Candidates as Candidates
from .grid import (
    Floats as Floats,
    Ints as Ints,
    PolicyGrid as PolicyGrid,
    locks_weights as locks_weights,
    sizes_up_to as sizes_up_to,
)
from .host_layers import (
    HostLayerCandidates as HostLayerCandidates,
    host_layer_candidates as host_layer_candidates,
    short_bytes as short_bytes,
)
from .locking import (
    largest_share as largest_share,
    locked_bytes as locked_bytes,
    most_locked as most_locked,
    staging_turns as staging_turns,
    streamed_bytes as streamed_bytes,
    usually_locked as usually_locked,
)
from .mixes import PREFILLS as PREFILLS, Mix as Mix, Mixes as Mixes, total_of as total_of
from .placed import (
    ExpertPlaces as ExpertPlaces,
    host_layers_in_words as host_layers_in_words,
    in_words as in_words,
    placed_experts as placed_experts,
    remarks as remarks,
    share_on_host as share_on_host,
)
from .space import Space as Space, candidates_of as candidates_of
from .split import Frame as Frame, SplitCandidates as SplitCandidates, split_candidates as split_candidates
