from .control_groups import core_limit as core_limit, memory_limit as memory_limit
from .found import Found as Found, detected_table as detected_table, find as find
from .system import AskedSystem as AskedSystem
