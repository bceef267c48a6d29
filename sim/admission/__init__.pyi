from .admission import Admission as Admission
from .arrivals import Arrivals as Arrivals
from .composition import Chunk as Chunk, Composition as Composition, Decoding as Decoding
from .lengths import GenerationLengths as GenerationLengths
from .rules import BLOCK_TOKENS as BLOCK_TOKENS, AdmissionRules as AdmissionRules, Joins as Joins, Priority as Priority
from .stream import RequestStream as RequestStream, StreamedRequest as StreamedRequest
