"""All stages, in the order in which they are run."""

from validation.gpu.piece import Stage
from validation.gpu.stages.calibrating import calibration_pieces
from validation.gpu.stages.facts import fact_pieces
from validation.gpu.stages.logits import logit_pieces
from validation.gpu.stages.peers import peer_pieces
from validation.gpu.stages.running import run_pieces
from validation.gpu.stages.times import time_pieces
from validation.gpu.stages.tokens import token_pieces
from validation.gpu.stages.whole import whole_pieces

STAGES = (
    Stage("facts", "what the machine is and does", 5, fact_pieces),
    Stage("tokens", "tokens equal to plain generate()", 14, token_pieces),
    Stage("parity", "bf16 logits against the plain model", 8, logit_pieces),
    Stage("calibration", "the machine in numbers", 25, calibration_pieces),
    Stage("runs", "every schedule, predicted before it runs", 28, run_pieces),
    Stage("peers", "others at the same cap", 9, peer_pieces),
    Stage("times", "our times against a profiler's", 7, time_pieces),
    Stage("whole", "a model of full depth", 22, whole_pieces),
)
REPORT = len(STAGES)
"""The number of the last stage: the report, which needs no device."""

REPORT_WEIGHT = 6.0
