from .search import SCHEDULE as SCHEDULE, search_policies as search_policies
from .throughput import hrm_tokens_per_s as hrm_tokens_per_s
