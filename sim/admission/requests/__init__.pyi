from .arrivals import Arrivals as Arrivals
from .lengths import CONSTANT as CONSTANT, MOST_MEAN as MOST_MEAN, PROMPTS as PROMPTS, Lengths as Lengths
from .stream import RequestStream as RequestStream, StreamedRequest as StreamedRequest
