from .analyse import Findings as Findings, analyse as analyse
from .execute import Campaign as Campaign
from .grid import STANDARD as STANDARD
from .picture import draw_ops as draw_ops, draw_runs as draw_runs
from .report import markdown as markdown
from .steady import told as told
