from .bars import Progress as Progress, progress as progress
from .commands import PROGRAM as PROGRAM, main as main
from .frame import (
    INTERRUPTED as INTERRUPTED,
    Command as Command,
    OneLineParser as OneLineParser,
    Program as Program,
    project_version as project_version,
    run_command as run_command,
)
from .options import (
    add_jobs as add_jobs,
    add_json as add_json,
    add_plot as add_plot,
    check_format as check_format,
    one_of as one_of,
    positive_int as positive_int,
)
from .output import (
    SCHEMA as SCHEMA,
    console as console,
    deliver as deliver,
    write_json as write_json,
    write_text as write_text,
    writing as writing,
)
