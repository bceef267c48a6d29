from .bound import least_seconds as least_seconds
from .lanes import lanes_tokens_per_s as lanes_tokens_per_s
