from .exported import Exported as Exported, export_plan as export_plan
from .page_sections import (
    memory_section as memory_section,
    predictions_table as predictions_table,
    timelines_section as timelines_section,
)
from .pages import plan_page as plan_page
from .programs import checkpoint_of as checkpoint_of
from .report import print_exported as print_exported
from .targets import TARGETS as TARGETS
