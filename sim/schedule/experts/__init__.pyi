from .slots import ASKED_FOR as ASKED_FOR, ON_DEVICE as ON_DEVICE, ExpertSlots as ExpertSlots
from .split import SplitExperts as SplitExperts
