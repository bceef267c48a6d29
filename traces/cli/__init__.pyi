from .commands import main as main
from .frame import (
    INTERRUPTED as INTERRUPTED,
    OneLineParser as OneLineParser,
    add_command as add_command,
    check_format as check_format,
    run_command as run_command,
    write_text as write_text,
    writing as writing,
)
from .glossary import legend as legend, meanings as meanings
from .pictures import (
    COLOURS as COLOURS,
    FINEST as FINEST,
    ROW_ORDER as ROW_ORDER,
    draw_lanes as draw_lanes,
    name_ops as name_ops,
    new_figure as new_figure,
    open_frame as open_frame,
    save as save,
)
from .tables import (
    PROSE as PROSE,
    TEXT as TEXT,
    Columns as Columns,
    Report as Report,
    console as console,
    markdown_table as markdown_table,
)
