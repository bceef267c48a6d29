from .execute import Campaign as Campaign
from .findings import Findings as Findings, analyse as analyse
from .grid import STANDARD as STANDARD
from .picture import draw_ops as draw_ops, draw_runs as draw_runs
from .report import report_markdown as report_markdown
from .steady import told as told
