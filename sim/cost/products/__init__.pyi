from .capacity import dropped_share as dropped_share, expert_capacity as expert_capacity
from .expert_use import ALIKE as ALIKE, ExpertUse as ExpertUse
from .padding import Padding as Padding
