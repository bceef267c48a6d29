from .chunks import CHUNKS as CHUNKS, Chunked as Chunked, serve_beside as serve_beside, serve_by_best as serve_by_best
from .picture import draw_served as draw_served
from .report import print_served as print_served
from .served import (
    Served as Served,
    ServedComparison as ServedComparison,
    compare_served as compare_served,
    served_by as served_by,
)
