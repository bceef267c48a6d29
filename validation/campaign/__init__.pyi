from .execute import Campaign as Campaign
from .findings import Findings as Findings, Recordings as Recordings, analyse as analyse
from .grid import STANDARD as STANDARD, CampaignGrid as CampaignGrid, Case as Case
from .measurements import Measurements as Measurements
from .picture import draw_ops as draw_ops, draw_runs as draw_runs
from .report import (
    IN_SHORT as IN_SHORT,
    answer_row as answer_row,
    layer_rows as layer_rows,
    met_or_missed as met_or_missed,
    report_markdown as report_markdown,
    whole_report as whole_report,
)
from .steady import told as told
