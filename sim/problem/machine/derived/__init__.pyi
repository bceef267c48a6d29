from .rates import kept_on_host_bytes as kept_on_host_bytes, page_lockable_bytes as page_lockable_bytes
from .table import completed as completed, with_number as with_number, without_derived as without_derived
