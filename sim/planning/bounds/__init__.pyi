from .bound import least_seconds as least_seconds
from .joules import least_joules_per_token as least_joules_per_token
from .lanes import lanes_tokens_per_s as lanes_tokens_per_s
