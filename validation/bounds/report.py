"""What is told of published bounds: each figure of the paper beside ours."""

from collections.abc import Sequence

from traces.cli import TEXT, Report
from validation.bounds.moe_lens import BoundCheck


def print_bounds(checks: Sequence[BoundCheck]) -> None:
    """Print a table."""
    columns = {"figure": TEXT, "section": TEXT, "published": ",.4g", "ours": ",.4g", "error": "+.1%"}
    rows = ((one.name, one.section, one.published, one.ours, one.error) for one in checks)
    title = "bounds of MoE-Lens (arXiv 2504.09345), by our models of model, memory and admission"
    Report().table(columns, rows, title, keys=2)
