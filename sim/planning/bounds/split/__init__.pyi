from .joules import active_joules_of_split as active_joules_of_split
from .seconds import least_seconds_of_split as least_seconds_of_split
from .tables import CopyCosts as CopyCosts
