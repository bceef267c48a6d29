from .chrome_writer import write_trace as write_trace
from .pytorch_profile import batch_range as batch_range, ended_range as ended_range, task_range as task_range
from .reader import read_trace as read_trace
from .text_files import (
    UNFINISHED as UNFINISHED,
    appearing as appearing,
    is_file as is_file,
    parse_object as parse_object,
    read_object as read_object,
    read_objects as read_objects,
    read_text as read_text,
    read_toml as read_toml,
    reading_csv as reading_csv,
    shown_path as shown_path,
)
