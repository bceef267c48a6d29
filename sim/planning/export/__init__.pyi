from .exported import Exported as Exported, export_plan as export_plan
from .programs import checkpoint_of as checkpoint_of
from .report import print_exported as print_exported
from .targets import TARGETS as TARGETS
