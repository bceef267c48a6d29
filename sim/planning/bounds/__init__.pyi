from .bound import least_seconds as least_seconds
