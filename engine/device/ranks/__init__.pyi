from .cores import keep_to_share as keep_to_share
from .errors import PeerLostError as PeerLostError, RankError as RankError, is_peer_lost as is_peer_lost
from .joining import Rendezvous as Rendezvous, join_group as join_group, started_by_torchrun as started_by_torchrun
from .rank import Rank as Rank
from .sums import RankSums as RankSums
from .watched import run_in_ranks as run_in_ranks
