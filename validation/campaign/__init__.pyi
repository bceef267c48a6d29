from .execute import Campaign as Campaign
from .findings import Findings as Findings, Recordings as Recordings, analyse as analyse
from .grid import STANDARD as STANDARD, CampaignGrid as CampaignGrid, Case as Case
from .measurements import Measurements as Measurements
from .picture import draw_ops as draw_ops, draw_runs as draw_runs
from .report import IN_SHORT as IN_SHORT, layer_rows as layer_rows, report_markdown as report_markdown
from .steady import told as told
