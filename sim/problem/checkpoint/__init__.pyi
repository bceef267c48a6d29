from .checkpoint import Checkpoint as Checkpoint
from .find import find_checkpoint as find_checkpoint
