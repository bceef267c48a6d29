from .host_experts import HostExperts as HostExperts, can_run_on_host as can_run_on_host
from .played import PlayedExperts as PlayedExperts
