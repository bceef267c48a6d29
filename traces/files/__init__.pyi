from .atomic import appearing as appearing
from .chrome_writer import write_trace as write_trace
from .pytorch_profile import batch_range as batch_range, ended_range as ended_range, task_range as task_range
from .reader import read_trace as read_trace
