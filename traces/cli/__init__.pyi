from .bars import Progress as Progress, progress as progress
from .commands import PROGRAM as PROGRAM, main as main
from .frame import (
    INTERRUPTED as INTERRUPTED,
    Command as Command,
    CommandLine as CommandLine,
    OneLineParser as OneLineParser,
    project_version as project_version,
    run_command as run_command,
)
from .glossary import legend as legend, meanings as meanings
from .options import (
    add_html as add_html,
    add_jobs as add_jobs,
    add_json as add_json,
    add_plot as add_plot,
    one_of as one_of,
    positive_int as positive_int,
)
from .output import (
    SCHEMA as SCHEMA,
    deliver as deliver,
    make_folder as make_folder,
    write_json as write_json,
    write_text as write_text,
    writing as writing,
)
from .pictures import (
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
    WORDS as WORDS,
    Columns as Columns,
    Report as Report,
    console as console,
    markdown_table as markdown_table,
)
from .workers import begin_worker as begin_worker, in_processes as in_processes, uninterrupted as uninterrupted
