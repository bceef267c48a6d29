from .joint import Joint as Joint, JointRows as JointRows
from .micro_batch import Attended as Attended, InFlight as InFlight
from .probe import bears_padding as bears_padding, can_join as can_join
