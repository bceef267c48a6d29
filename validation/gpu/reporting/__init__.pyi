from .dry_run import print_dry_run as print_dry_run
from .picture import draw_proof as draw_proof
from .summary import ProofSummary as ProofSummary, summarised as summarised
from .text import proof_text as proof_text
