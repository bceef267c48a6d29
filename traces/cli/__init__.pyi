from .commands import main as main
from .frame import (
    INTERRUPTED as INTERRUPTED,
    OneLineParser as OneLineParser,
    add_command as add_command,
    check_format as check_format,
    console as console,
    run_command as run_command,
    write_text as write_text,
    writing as writing,
)
from .workers import in_processes as in_processes
